"""A training run: the same at every split, below what word counts can reach, and measured."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm
from minimegatron.analysis.flops import flops_per_token
from minimegatron.training.data import Corpus, make_corpus
from minimegatron.training.loop import train, validation_loss
from minimegatron.training.tokenizer import ByteTokenizer

TEXT = "".join(f"{i} plus {i} makes {2 * i}; " for i in range(400))
CONFIG = mm.GPTConfig(vocab_size=256, seq_length=16, hidden_size=32, num_layers=1, num_heads=4)


def corpus():
    return make_corpus(TEXT, CONFIG.seq_length, "bytes")


def run(mesh, dtype=torch.float64, **options):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    model = mm.GPT(CONFIG, mesh)
    return train(model, corpus(), **({"steps": 6, "batch": 6, "lr": 1e-2} | options))


def test_every_split_has_the_same_losses():
    (wanted,) = mm.launch(run)
    for split in ({"tp": 2}, {"dp": 2}, {"tp": 2, "dp": 2}):
        for history in mm.launch(run, **split):
            assert history.losses == pytest.approx(wanted.losses, rel=1e-9)
            ((step, loss),) = history.validation
            assert (step, loss) == (6, pytest.approx(wanted.validation[0][1], rel=1e-9))


def test_microbatches_change_nothing_but_the_number_of_messages():
    def in_thirds(mesh):
        return run(mesh, microbatches=3)

    whole, thirds = mm.launch(run, tp=2)[0], mm.launch(in_thirds, tp=2)[0]
    assert thirds.losses == pytest.approx(whole.losses, rel=1e-9)
    forward = [h.ledger.count(phase="forward") for h in (whole, thirds)]
    assert forward[1] == 3 * forward[0] > 0


def test_it_learns_more_than_how_frequent_each_token_is():
    history = run(mm.single(), torch.float32, steps=60, batch=16, validate_every=20)
    assert [step for step, _ in history.validation] == [20, 40, 60]
    assert history.validation[-1][1] < 0.6 * corpus().unigram_entropy()
    assert history.losses[-1] < 0.6 * history.losses[0]


def test_speeds_are_of_all_ranks_together_and_in_the_stated_convention():
    history = run(mm.single(), torch.float32)
    assert history.tokens_per_second > 0
    ratio = history.flops_per_second / history.tokens_per_second
    assert ratio == pytest.approx(flops_per_token(CONFIG))


def test_the_validation_loss_is_that_of_all_its_tokens_and_trains_nothing():
    model = mm.GPT(CONFIG)
    text = corpus()
    tokens, targets = text.validation_batch(30, CONFIG.seq_length)
    logits = model(tokens)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert validation_loss(model, text, 30) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert model.training and model.tokens_since_finish == 0
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan.*smaller lr"):
        model = mm.GPT(CONFIG)

        def poison(step, loss):
            with torch.no_grad():
                model.embedding.word.weight.fill_(torch.nan)

        train(model, corpus(), steps=3, batch=2, report=poison)


def test_bad_sizes_are_refused():
    text = Corpus(ByteTokenizer(), torch.zeros(99), torch.zeros(99))
    with pytest.raises(ValueError, match="steps=0"):
        train(mm.GPT(CONFIG), text, steps=0, batch=2)
    with pytest.raises(ValueError, match="batch=1 is too small"):
        train(mm.GPT(CONFIG), text, steps=1, batch=1, microbatches=2)
