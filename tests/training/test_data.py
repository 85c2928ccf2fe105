"""The corpus: parts that do not overlap, batches that depend on seed and step alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minimegatron as mm
from minimegatron.training.data import Corpus, check_split, make_corpus, slice_of
from minimegatron.training.tokenizer import ByteTokenizer


def counting(n_train, n_validation=50):
    """A corpus whose tokens are their own positions."""
    return Corpus(ByteTokenizer(), torch.arange(n_train), torch.arange(n_validation))


def test_targets_are_the_tokens_one_further_on():
    tokens, targets = counting(100).batch(step=3, size=5, seq_length=7)
    assert tokens.shape == targets.shape == (5, 7)
    assert torch.equal(targets, tokens + 1)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_a_batch_depends_on_seed_and_step_alone():
    corpus = counting(10_000)
    same = corpus.batch(3, 8, 4, seed=1)[0]
    torch.manual_seed(99)
    assert torch.equal(corpus.batch(3, 8, 4, seed=1)[0], same)
    assert not torch.equal(corpus.batch(4, 8, 4, seed=1)[0], same)
    assert not torch.equal(corpus.batch(3, 8, 4, seed=2)[0], same)


def test_batches_are_on_the_cpu_whatever_the_default_device():
    corpus = counting(100)
    with torch.device("meta"):  # ranks on a GPU have it as their default
        assert corpus.batch(0, 2, 4)[1].device.type == "cpu"
        assert corpus.validation_batch(2, 4)[1].device.type == "cpu"


def test_every_window_can_be_drawn_and_none_beyond_the_end():
    corpus = counting(12, 12)
    tokens, targets = corpus.batch(0, 500, 8)
    assert set(tokens[:, 0].tolist()) == {0, 1, 2, 3}
    assert int(targets.max()) == 11
    tokens, targets = corpus.validation_batch(500, 8)
    assert set(tokens[:, 0].tolist()) == {0, 1, 2, 3}
    assert int(targets.max()) == 11
    assert counting(9).batch(0, 2, 8)[0].tolist() == [list(range(8))] * 2


def test_validation_takes_a_tenth_from_all_over_the_text_and_training_the_rest():
    text = "".join(chr(65 + i // 10) for i in range(200))  # ten As, ten Bs, ... up to T
    corpus = make_corpus(text, 4, tokenizer="bytes")
    decode = corpus.tokenizer.decode
    assert decode(corpus.validation.tolist()) == "".join(c * 2 for c in "BDFHJLNPRT")
    assert len(corpus.train) + len(corpus.validation) == 200


def test_unigram_entropy_is_the_cross_entropy_of_the_smoothed_frequencies():
    corpus = Corpus(ByteTokenizer(), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2]))
    p = [4 / 260, 2 / 260, 1 / 260]  # counts + 1, over 4 tokens + 256
    assert corpus.unigram_entropy() == pytest.approx(-sum(map(math.log, p)) / 3)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_text_with_no_room_for_a_sequence_is_refused_with_both_numbers(tokenizer):
    with pytest.raises(ValueError, match="part has .* need 65"):
        make_corpus("short text " * 20, 64, tokenizer)
    make_corpus("a" * 700, 64, "bytes")
    with pytest.raises(ValueError, match="validation part has 60 tokens"):
        make_corpus("a" * 600, 64, "bytes")


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(ValueError, match="'words': use 'bpe' or 'bytes'"):
        make_corpus("text", 2, "words")


@given(total=st.integers(0, 100), parts=st.integers(1, 20))
def test_slices_cover_everything_once_and_are_almost_equal(total, parts):
    slices = [slice_of(total, parts, i) for i in range(parts)]
    assert [i for s in slices for i in range(total)[s]] == list(range(total))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


def test_what_cannot_be_divided_is_refused_with_both_numbers():
    config = mm.GPTConfig(vocab_size=10, seq_length=4, hidden_size=12, num_layers=1, num_heads=6)
    check_split(config, tp=3, dp=2, batch=4, microbatches=2)
    with pytest.raises(ValueError, match="num_heads 6 does not divide by tp=4"):
        check_split(config, 4, 1, 1, 1)
    with pytest.raises(ValueError, match="batch=3 .* dp=2 x microbatches=2 need 4"):
        check_split(config, 1, 2, 3, 2)
    with pytest.raises(ValueError, match="microbatches=0"):
        check_split(config, 1, 1, 1, 0)
