"""Sequence parallelism: equal to one process, with other collectives and partial gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import minimegatron as mm

CONFIG = mm.GPTConfig(
    vocab_size=38, seq_length=8, hidden_size=32, num_layers=2, num_heads=8, sequence_parallel=True
)
PLAIN = dataclasses.replace(CONFIG, sequence_parallel=False)
WHOLE_ON_EVERY_RANK = (
    ["embedding.position.weight", "final_norm.weight", "final_norm.bias"]
    + [f"layers.{i}.ln{n}.{kind}" for i in (0, 1) for n in (1, 2) for kind in ("weight", "bias")]
    + [f"layers.{i}.{row}.bias" for i in (0, 1) for row in ("attention.out", "mlp.down")]
)  # fmt: skip


@pytest.mark.parametrize(
    "features",
    [
        {"tp": 1},
        {"tp": 2},
        {"tp": 4},
        {"tp": 2, "keep_gathered": True, "layer_norm": "post"},
        {"tp": 2, "dp": 2, "microbatches": 3, "batch": 7, "vocab_size": 29},
        {"tp": 4, "dropout": 0.2, "attention": "explicit", "tie_embeddings": False},
        {"tp": 2, "dp": 2, "dropout": 0.2, "attention": "explicit", "microbatches": 2},
    ],
    ids=str,
)
def test_it_is_equal_to_one_process(features):
    report = mm.parity(CONFIG, **features)
    assert report.ok, report
    assert ("masks" in report.errors) == ("dropout" in features)


# What is sent


def sent_by_one_step(mesh, config, finish=False):
    model, tokens = mm.GPT(config, mesh), torch.arange(16).view(2, 8)
    with mm.ledger() as log:
        model.loss(tokens, tokens).backward()
        if finish:
            mm.finish_gradients(model)
    return log


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("keep", [False, True])
def test_gathers_and_reduce_scatters_take_the_place_of_every_all_reduce(tp, keep):
    config = dataclasses.replace(CONFIG, keep_gathered=keep)
    layers, per_token = config.num_layers, 16 * 4
    pairs, hidden = 2 * layers + 1, per_token * config.hidden_size
    for log in mm.launch(sent_by_one_step, config, tp=tp):
        assert log.count("all_reduce", phase="forward") == 3  # of the loss
        assert log.count("all_reduce", phase="backward") == 0
        # forward: into attention, MLP and head; out of the embedding, attention and MLP
        assert log.count("all_gather", "tp", "forward") == pairs
        assert log.count("reduce_scatter", "tp", "forward") == pairs
        assert log.count("reduce_scatter", "tp", "backward") == pairs
        assert log.count("all_gather", "tp", "backward") == (pairs if keep else 2 * pairs)
        assert {r.bytes for r in log.records} == {hidden, per_token}
        assert {r.axis for r in log.records} == {"tp"}


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize(("keep", "times"), [(True, 1.0), (False, 1.25)])
def test_ring_bytes_are_plain_tps_if_the_input_is_kept_and_a_quarter_more_a_layer_if_not(
    tp, keep, times
):
    def layer(config):
        """What one layer more sends, and the rest of the model."""
        one, two = (
            mm.launch(sent_by_one_step, dataclasses.replace(config, num_layers=n), tp=tp)[0]
            for n in (1, 2)
        )
        return two.wire_bytes() - one.wire_bytes(), 2 * one.wire_bytes() - two.wire_bytes()

    plain, plain_rest = layer(PLAIN)
    split, split_rest = layer(dataclasses.replace(CONFIG, keep_gathered=keep))
    hidden = 16 * 32 * 4
    assert plain == 4 * 2 * (tp - 1) / tp * hidden  # four all-reduces, as the paper says
    assert split == times * plain
    again = 0 if keep else (tp - 1) / tp * hidden  # the head's input
    assert split_rest == plain_rest + again


def test_the_partial_gradients_cost_one_flat_all_reduce_a_step():
    report = mm.parity(CONFIG, tp=2, microbatches=3)
    state = mm.GPT(CONFIG).full_state_dict()
    for log in report.ledger:
        (record,) = log.select("all_reduce", "tp", "backward")
        assert record.bytes == 8 * sum(state[name].numel() for name in WHOLE_ON_EVERY_RANK)


def test_one_process_sends_nothing():
    with mm.ledger() as log:
        sent_by_one_step(mm.single(), CONFIG, finish=True)
    assert not log.records


# What it does


def test_layer_norms_and_residuals_hold_a_part_of_the_sequence():
    def shapes(mesh, config):
        model, seen = mm.GPT(config, mesh), {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.LayerNorm | mm.TransformerLayer | mm.ParallelMLP):
                module.register_forward_hook(
                    lambda module, inputs, out, name=name: seen.update({name: tuple(out.shape)})
                )
        logits = model(torch.zeros(2, 8, dtype=torch.long))
        return seen, tuple(logits.shape)

    for tp in (2, 4):
        seen, logits = mm.launch(shapes, CONFIG, tp=tp)[0]
        assert len(seen) == 2 * 4 + 1 and set(seen.values()) == {(2, 8 // tp, 32)}
        assert logits == (2, 8, -(-38 // tp))
    assert set(mm.launch(shapes, PLAIN, tp=2)[0][0].values()) == {(2, 8, 32)}


def gradients_before_and_after(mesh, config):
    model = mm.GPT(config, mesh)
    tokens = torch.arange(16).view(2, 8)
    model.loss(tokens, tokens.flip(1)).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    mm.finish_gradients(model)
    return before, {name: p.grad for name, p in model.named_parameters()}


def test_finish_completes_exactly_the_gradients_of_what_is_whole_on_every_rank():
    ((before0, after0), (before1, after1)) = mm.launch(gradients_before_and_after, CONFIG, tp=2)
    changed = [name for name in after0 if not torch.equal(before0[name], after0[name])]
    assert sorted(changed) == sorted(WHOLE_ON_EVERY_RANK)
    for name in WHOLE_ON_EVERY_RANK:
        torch.testing.assert_close(after0[name], before0[name] + before1[name])
        assert torch.equal(after0[name], after1[name])


def test_a_frozen_layer_norm_is_left_alone():
    def check(mesh):
        model = mm.GPT(CONFIG, mesh)
        model.layers["0"].ln1.weight.requires_grad_(False)
        tokens = torch.arange(16).view(2, 8)
        model.loss(tokens, tokens).backward()
        mm.finish_gradients(model)
        assert model.layers["0"].ln1.weight.grad is None
        return model.layers["0"].ln1.bias.grad

    first, second = mm.launch(check, tp=2)
    assert torch.equal(first, second)


def test_every_rank_draws_masks_of_its_own_for_its_own_tokens():
    def masks(mesh):
        model = mm.GPT(dataclasses.replace(CONFIG, dropout=0.3, attention="explicit"), mesh)
        model.streams.record = []
        before = model.streams.same.get_state()
        model(torch.zeros(2, 8, dtype=torch.long))
        assert torch.equal(model.streams.same.get_state(), before)
        return dict(model.streams.record)

    first, second = mm.launch(masks, tp=2)
    assert len(first) == 1 + 3 * 2
    for site, mask in first.items():
        assert not torch.equal(mask, second[site]), site
        assert mask.shape == ((2, 4, 8, 8) if site.endswith("weights") else (2, 4, 32))


def test_text_of_any_length_is_generated_as_in_one_process():
    def text(mesh, config):
        torch.manual_seed(3)
        model = mm.GPT(config, mesh)
        return [mm.generate(model, torch.arange(n)[None], 5).tolist() for n in (1, 4, 7, 11)]

    (one,) = mm.launch(text, PLAIN)
    assert all(four == one for four in mm.launch(text, CONFIG, tp=4))


def test_a_learners_own_operator_runs_where_the_paper_puts_it():
    calls = []

    def gather(x, axis, dim=1):
        calls.append(1)
        return mm.sequence_all_gather(x, axis, dim)

    def check(mesh):
        calls.clear()
        sent_by_one_step(mesh, CONFIG)
        assert len(calls) == 2 * CONFIG.num_layers + 1

    mm.launch(check, tp=2, using={"sequence_all_gather": gather})
    assert mm.parity(CONFIG, tp=2, steps=1, using={"sequence_all_gather": gather}).ok


# Bugs put in on purpose


def test_bug_14_gradients_not_summed_over_tp_are_caught():
    report = mm.parity(CONFIG, tp=2, using={"sum_partial_gradients": lambda model: None})
    assert not report.ok
    assert report.worst["gradients"] in WHOLE_ON_EVERY_RANK
    assert report.errors["gradients"] > 0.1 and report.errors["grad_norm"] > 1e-3
    assert 1e-10 < report.errors["loss"] < 0.1  # a slow drift: step 0 is right
    assert mm.parity(PLAIN, tp=2, using={"sum_partial_gradients": lambda model: None}).ok


def test_bug_14_averaged_in_place_of_summed_is_caught():
    def average(model):
        mm.sum_partial_gradients(model)
        for name, p in model.named_parameters():
            if model.is_partial(name):
                p.grad /= model.mesh.tp.size

    assert not mm.parity(CONFIG, tp=2, steps=1, using={"sum_partial_gradients": average}).ok


def test_one_seed_for_all_parts_of_the_sequence_is_caught():
    class OneSeed(mm.DropoutStreams):
        def __init__(self, mesh, seed):
            super().__init__(mesh, seed)
            self.different = torch.Generator().manual_seed(seed)

    features = {"tp": 2, "dropout": 0.2, "attention": "explicit", "steps": 1}
    report = mm.parity(CONFIG, using={"DropoutStreams": OneSeed}, **features)
    assert report.errors["masks"] == math.inf and report.worst["masks"] == "embedding"


# Bad input


def test_a_sequence_that_does_not_divide_is_an_error_that_names_both_numbers():
    with pytest.raises(ValueError, match="seq_length 6 does not divide by tp=4"):
        mm.parity(CONFIG, tp=4, seq_length=6)
    with pytest.raises(ValueError, match="keep_gathered=True needs sequence_parallel=True"):
        dataclasses.replace(PLAIN, keep_gathered=True)

    def check(mesh):
        with pytest.raises(ValueError, match="seq_length 6 does not divide by tp=4"):
            mm.GPT(dataclasses.replace(CONFIG, seq_length=6), mesh)
        with pytest.raises(ValueError, match="a sequence of 7 does not divide by tp=4"):
            mm.GPT(CONFIG, mesh)(torch.zeros(1, 7, dtype=torch.long))

    mm.launch(check, tp=4)
