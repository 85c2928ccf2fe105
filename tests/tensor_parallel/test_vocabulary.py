"""The split embedding and the split loss against torch's dense ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import minimegatron as mm


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def dense_embedding(vocab, dim=3):
    torch.manual_seed(3)
    return nn.Embedding(vocab, dim, dtype=torch.float64)


@pytest.mark.parametrize(("vocab", "tp"), [(10, 1), (12, 2), (11, 2), (10, 4), (5, 4)])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_embedding_equals_the_dense_one_for_every_token(vocab, tp, sequence_parallel):
    def check(mesh):
        dense = dense_embedding(vocab)
        tokens = torch.arange(vocab).repeat(2, 4)  # borders of the shards included
        weights = torch.randn(2, 4 * vocab, 3, dtype=torch.float64)
        y = dense(tokens)
        (y * weights).sum().backward()
        layer = mm.VocabParallelEmbedding.from_dense(
            dense, mesh.tp, sequence_parallel=sequence_parallel
        )
        rank, rows = mesh.tp.rank, math.ceil(vocab / tp)
        assert layer.weight.shape == (rows, 3)
        got = layer(tokens)
        if sequence_parallel:
            y, weights = y.chunk(tp, 1)[rank], weights.chunk(tp, 1)[rank]
        (got * weights).sum().backward()
        close(got, y)
        known = dense.weight.grad[rank * rows : (rank + 1) * rows]
        close(layer.weight.grad[: len(known)], known)
        assert not layer.weight.grad[len(known) :].any() and not layer.weight[len(known) :].any()

    mm.launch(check, tp=tp)


def test_the_embedding_constructor_draws_the_dense_one_and_keeps_its_part():
    def check(mesh):
        torch.manual_seed(0)
        dense = nn.Embedding(10, 3)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        layer = mm.VocabParallelEmbedding(10, 3, mesh.tp)
        assert torch.equal(torch.get_rng_state(), after)
        assert torch.equal(mm.all_gather(layer.weight.detach(), mesh.tp)[:10], dense.weight)
        assert layer.weight.shape == (3, 3)

    mm.launch(check, tp=4)


def test_the_embedding_sends_one_all_reduce_forward_and_nothing_backward():
    def check(mesh):
        layer = mm.VocabParallelEmbedding(10, 3, mesh.tp)
        with mm.ledger() as log:
            layer(torch.zeros(2, 5, dtype=torch.long)).sum().backward()
        assert [(r.op, r.phase, r.bytes) for r in log.records] == [
            ("all_reduce", "forward", 2 * 5 * 3 * 4)
        ]

    mm.launch(check, tp=2)


@pytest.mark.parametrize("token", [-1, 10, 11])
def test_a_token_outside_the_vocabulary_is_an_error_even_where_there_is_padding(token):
    def check(mesh):
        layer = mm.VocabParallelEmbedding(10, 3, mesh.tp)
        with pytest.raises(IndexError, match=f"token {token} .* vocabulary of 10"):
            layer(torch.tensor([[0, token]]))

    mm.launch(check, tp=4)
    check(mm.single())


def test_an_embedding_that_cannot_be_split_is_an_error():
    with pytest.raises(ValueError, match="padding_idx"):
        mm.VocabParallelEmbedding.from_dense(nn.Embedding(4, 3, padding_idx=0), mm.single().tp)


def check_loss(mesh, vocab, scale=1.0, dtype=torch.float64, close=close):
    """The split loss and its gradient against F.cross_entropy on the same logits, whole."""
    axis, columns = mesh.tp, math.ceil(vocab / mesh.tp.size)
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(3, vocab + 1, vocab, generator=generator, dtype=torch.float64)
    logits = logits.to(dtype)
    targets = torch.arange(vocab + 1).repeat(3, 1)  # every token is a target on every row
    targets[:, -1] = -100
    weights = torch.randn(3, vocab + 1, generator=generator, dtype=torch.float64)
    whole = logits.double().clone().requires_grad_()
    expected = F.cross_entropy(whole.flatten(0, 1), targets.flatten(), reduction="none")
    (expected * weights.flatten()).sum().backward()
    first = axis.rank * columns
    # Whatever a padding column holds must not matter.
    part = torch.full((3, vocab + 1, columns), torch.nan, dtype=dtype)
    known = whole.grad[..., first : first + columns]
    part[..., : known.shape[-1]] = logits[..., first : first + columns]
    part.requires_grad_()
    before = part.detach().clone()
    loss = mm.vocab_parallel_cross_entropy(part, targets, axis, vocab_size=vocab)
    assert loss.shape == targets.shape
    (loss.double() * weights).sum().backward()
    assert torch.equal(part.detach().nan_to_num(), before.nan_to_num())
    close(loss.double(), expected.view_as(targets))
    close(part.grad[..., : known.shape[-1]].double(), known)
    assert not part.grad[..., known.shape[-1] :].any()
    assert not loss[:, -1].any() and not part.grad[:, -1].any()
    return loss, part.grad


@pytest.mark.parametrize(("vocab", "tp"), [(10, 1), (12, 2), (11, 2), (12, 4), (10, 4), (5, 4)])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_loss_and_gradient_equal_the_dense_ones(vocab, tp, scale):
    mm.launch(check_loss, vocab, scale, tp=tp)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    def check(mesh):
        # bands: float32 rounding for the loss, one rounding to half precision for the gradient
        def near(a, b):
            half = torch.finfo(dtype).eps if a.dim() == 3 else 0.0  # of the gradient only
            torch.testing.assert_close(a, b, rtol=max(2e-6, half), atol=2e-6)

        loss, grad = check_loss(mesh, 22, dtype=dtype, close=near)
        assert loss.dtype == torch.float32 and grad.dtype == dtype

    mm.launch(check, tp=2)


def test_the_published_example_of_gathered_logits_is_caught():
    def check(mesh):
        logits, target = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor(3)
        part = logits.chunk(2)[mesh.tp.rank]
        loss = mm.vocab_parallel_cross_entropy(part, target, mesh.tp, vocab_size=4)
        assert abs(loss.item() - 0.4402) < 1e-4
        with pytest.raises(ValueError, match="4 columns.*vocabulary of 4 on tp=2 has 2"):
            mm.vocab_parallel_cross_entropy(logits, target, mesh.tp, vocab_size=4)

    mm.launch(check, tp=2)


def test_without_a_vocabulary_size_every_column_counts():
    def check(mesh):
        logits = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([0, 2, 3, 5, 7])
        got = mm.vocab_parallel_cross_entropy(
            logits.chunk(2, -1)[mesh.tp.rank], targets, mesh.tp, ignore_index=7
        )
        close(got, F.cross_entropy(logits, targets, ignore_index=7, reduction="none"))

    mm.launch(check, tp=2)


def test_backward_can_run_twice_and_logits_may_be_non_contiguous():
    def check(mesh):
        logits = torch.randn(6, 4, dtype=torch.float64).t().requires_grad_()
        targets = torch.tensor([0, 5, 6, 11])
        loss = mm.vocab_parallel_cross_entropy(logits, targets, mesh.tp).sum()
        once = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
        assert torch.equal(torch.autograd.grad(loss, logits)[0], once)
        assert torch.autograd.gradcheck(
            lambda x: mm.vocab_parallel_cross_entropy(mm.scatter(x, mesh.tp), targets, mesh.tp),
            (torch.randn(4, 12, dtype=torch.float64, requires_grad=True),),
        )

    mm.launch(check, tp=2)


def test_the_loss_sends_three_numbers_a_token_forward_and_nothing_backward():
    def check(mesh):
        logits = torch.randn(2, 5, 6, requires_grad=True)
        with mm.ledger() as log:
            targets = torch.zeros(2, 5, dtype=torch.long)
            mm.vocab_parallel_cross_entropy(logits, targets, mesh.tp).sum().backward()
        assert [(r.op, r.phase, r.bytes) for r in log.records] == [
            ("all_reduce", "forward", 2 * 5 * 4)
        ] * 3

    mm.launch(check, tp=2)


def test_targets_that_do_not_fit_are_errors():
    axis, logits = mm.single().tp, torch.zeros(2, 5, 6)
    with pytest.raises(IndexError, match="target 6 .* vocabulary of 6"):
        mm.vocab_parallel_cross_entropy(logits, torch.full((2, 5), 6), axis)
    with pytest.raises(IndexError, match="target -1 "):
        mm.vocab_parallel_cross_entropy(logits, torch.full((2, 5), -1), axis, vocab_size=6)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 5, 6\)"):
        mm.vocab_parallel_cross_entropy(logits, torch.zeros(2, 4, dtype=torch.long), axis)


def check_embedding(mesh, vocab=11):
    dense, tokens = dense_embedding(vocab), torch.arange(vocab)
    close(mm.VocabParallelEmbedding.from_dense(dense, mesh.tp)(tokens), dense(tokens))


class LastRowMissing(mm.VocabParallelEmbedding):
    def forward(self, tokens):
        local = tokens - self.first
        elsewhere = (local < 0) | (local >= len(self.weight) - 1)
        vectors = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return mm.g(vectors.masked_fill(elsewhere[..., None], 0.0), self.axis)


class FirstRowTwice(mm.VocabParallelEmbedding):
    def forward(self, tokens):
        local = tokens - self.first
        elsewhere = (local < 0) | (local > len(self.weight))
        vectors = F.embedding(local.clamp(0, len(self.weight) - 1), self.weight)
        return mm.g(vectors.masked_fill(elsewhere[..., None], 0.0), self.axis)


@pytest.mark.parametrize("wrong", [LastRowMissing, FirstRowTwice])
def test_bug_7_a_border_off_by_one_is_caught(wrong):
    mm.launch(check_embedding, tp=2)
    with pytest.raises(mm.RankError, match="AssertionError"):
        mm.launch(check_embedding, tp=2, using={"VocabParallelEmbedding": wrong})


def padding_takes_part(logits, targets, axis, vocab_size=None, ignore_index=-100):
    return mm.vocab_parallel_cross_entropy(logits.nan_to_num(), targets, axis, None, ignore_index)


def without_a_maximum(logits, targets, axis, vocab_size=None, ignore_index=-100):
    last = min(logits.shape[-1], max(vocab_size - axis.rank * logits.shape[-1], 0))
    total = mm.g(logits[..., :last].exp().sum(-1), axis)
    local = targets - axis.rank * logits.shape[-1]
    mine = (local >= 0) & (local < last)
    target = logits.gather(-1, local.where(mine, 0)[..., None])[..., 0].where(mine, 0.0)
    return (total.log() - mm.g(target, axis)).where(targets != ignore_index, 0.0)


def with_the_maximum_of_this_rank(logits, targets, axis, vocab_size=None, ignore_index=-100):
    highest = logits.detach().nan_to_num(nan=-torch.inf).amax(-1, keepdim=True)
    return without_a_maximum(logits - highest, targets, axis, vocab_size, ignore_index)


@pytest.mark.parametrize(
    ("wrong", "vocab", "scale"),
    [
        (padding_takes_part, 11, 1.0),  # bug 8
        (without_a_maximum, 12, 1000.0),  # bug 9
        (with_the_maximum_of_this_rank, 12, 1.0),
    ],
)
def test_bugs_8_and_9_of_the_loss_are_caught(wrong, vocab, scale):
    using = {"vocab_parallel_cross_entropy": wrong}
    with pytest.raises(mm.RankError, match="AssertionError"):
        mm.launch(check_loss, vocab, scale, tp=2, using=using)


def test_the_loss_without_a_maximum_is_right_on_small_logits_so_that_only_size_shows_bug_9():
    mm.launch(check_loss, 12, tp=2, using={"vocab_parallel_cross_entropy": without_a_maximum})


def test_bug_10_gathered_logits_are_refused():
    def gathers_first(logits, targets, axis, vocab_size=None, ignore_index=-100):
        whole = mm.gather(logits, axis)
        return mm.vocab_parallel_cross_entropy(whole, targets, axis, vocab_size, ignore_index)

    with pytest.raises(mm.RankError, match="12 columns.*vocabulary of 12 on tp=2 has 6"):
        mm.launch(check_loss, 12, tp=2, using={"vocab_parallel_cross_entropy": gathers_first})
