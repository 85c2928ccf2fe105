"""f, g and their relatives: values, gradients, conjugacy, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm

PAIRS = [("f", "g"), ("scatter", "gather"), ("sequence_all_gather", "sequence_reduce_scatter")]
OPERATORS = [name for pair in PAIRS for name in pair]
SHAPE = (2, 12, 12)


def value(rank, shape=SHAPE, seed=0):
    """What the given rank holds; every rank can work out every other's."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def expected(name, values, rank, dim):
    """The operator's forward, written down with all ranks' values at hand."""
    size = len(values)
    if name == "f":
        return values[rank]
    if name == "g":
        return sum(values)
    if name == "scatter":
        return values[rank].chunk(size, dim)[rank]
    if name in ("gather", "sequence_all_gather"):
        return torch.cat(values, dim)
    return sum(values).chunk(size, dim)[rank]


def options(name, dim):
    return {} if name in ("f", "g") else {"dim": dim}


def check_pairs(mesh):
    tp = mesh.tp

    def compare(name, conjugate, dim):
        x = value(tp.rank).requires_grad_()
        y = getattr(mm, name)(x, tp, **options(name, dim))
        values = [value(rank) for rank in range(tp.size)]
        torch.testing.assert_close(y, expected(name, values, tp.rank, dim))
        grads = [value(rank, y.shape, seed=1) for rank in range(tp.size)]
        y.backward(grads[tp.rank])
        torch.testing.assert_close(x.grad, expected(conjugate, grads, tp.rank, dim))

    for first, second in PAIRS:
        for dim in (-1, 1, -2, 2):
            compare(first, second, dim)
            compare(second, first, dim)


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_forward_and_backward_of_each_operator_are_those_of_its_pair(tp):
    mm.launch(check_pairs, tp=tp)


def test_compositions_pass_gradcheck_on_ranks():
    def check(mesh):
        tp = mesh.tp
        x = value(7, (2, 4, 4)).requires_grad_()
        weight = value(tp.rank, (2, 4, 4))
        part = weight[:, :2]

        def sequence(x):
            whole = mm.sequence_all_gather(mm.scatter(x, tp, 1), tp)
            return mm.gather(mm.sequence_reduce_scatter((whole * weight).tanh(), tp), tp, 1)

        for function in (
            lambda x: mm.g((mm.f(x, tp) * weight).tanh(), tp),
            lambda x: mm.gather((mm.scatter(x, tp, 1) * part).tanh(), tp, 1),
            sequence,
        ):
            assert torch.autograd.gradcheck(function, (x,))

    mm.launch(check, tp=2)


def check_own_memory(mesh):
    for name in OPERATORS:
        x = value(mesh.tp.rank).requires_grad_()
        y = getattr(mm, name)(x, mesh.tp)
        torch.testing.assert_close(x.detach(), value(mesh.tp.rank), msg=f"{name} changed its input")
        grad = value(mesh.tp.rank, y.shape, seed=1)
        y.backward(grad)
        torch.testing.assert_close(grad, value(mesh.tp.rank, y.shape, seed=1))
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr(), name


@pytest.mark.parametrize("tp", [1, 2])
def test_input_and_gradient_keep_their_values_and_the_result_has_its_own_memory(tp):
    mm.launch(check_own_memory, tp=tp)


def check_in_place_steps(mesh):
    for name in OPERATORS:
        results = []
        for in_place in (False, True):
            x = value(mesh.tp.rank).requires_grad_()
            # exp keeps its result for backward: whoever writes into it spoils the gradient.
            y = getattr(mm, name)(x.exp(), mesh.tp)
            y = y.mul_(2.0) if in_place else y * 2.0
            y.backward(value(mesh.tp.rank, y.shape, seed=1))
            results.append(x.grad)
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("tp", [1, 2])
def test_an_in_place_step_behind_an_operator_leaves_gradients_right(tp):
    mm.launch(check_in_place_steps, tp=tp)


def check_strides(mesh):
    for name in OPERATORS:
        for expanded in (False, True):
            results = []
            for contiguous in (True, False):
                x = value(mesh.tp.rank).transpose(1, 2)
                x = (x.contiguous() if contiguous else x).requires_grad_()
                y = getattr(mm, name)(x, mesh.tp)
                if expanded:
                    grad = torch.full((), mesh.tp.rank + 1.0, dtype=y.dtype).expand(y.shape)
                else:
                    grad = value(mesh.tp.rank, y.transpose(1, 2).shape, seed=1).transpose(1, 2)
                assert not grad.is_contiguous()
                y.backward(grad.contiguous() if contiguous else grad)
                results.append((y.detach(), x.grad))
            torch.testing.assert_close(results[0], results[1])


def test_non_contiguous_inputs_and_gradients_give_the_same_as_contiguous_ones():
    mm.launch(check_strides, tp=2)


def operator(forward, backward):
    """An operator out of two functions of (tensor, axis), as a learner would write it."""

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, axis):
            ctx.axis = axis
            return forward(x, axis)

        @staticmethod
        def backward(ctx, grad):
            return backward(grad, ctx.axis), None

    return Operator.apply


def same(x, axis):
    return x.clone()


def reduced(x, axis):
    return mm.all_reduce(x, axis)


def reduced_in_place(x, axis):
    return mm.all_reduce(x, axis, inplace=True)


def reduced_on_a_copy(x, axis):
    mm.all_reduce(x.contiguous(), axis, inplace=True)
    return x


# Numbers of pitfalls.md, A: the bug, and the checks that must catch it.
BUGS = {
    "3: no f": ({"f": operator(same, same)}, [check_pairs]),
    "4: g reduces again": ({"g": operator(reduced, reduced)}, [check_pairs]),
    "5a: g in place": ({"g": operator(reduced_in_place, same)}, [check_own_memory]),
    "5a: f in place": ({"f": operator(same, reduced_in_place)}, [check_own_memory]),
    "5b: f reduces a copy": ({"f": operator(same, reduced_on_a_copy)}, [check_strides]),
    "5b: g reduces a copy": ({"g": operator(reduced_on_a_copy, same)}, [check_strides]),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug):
    using, checks = BUGS[bug]
    for check in checks:
        with pytest.raises(mm.RankError, match="AssertionError"):
            mm.launch(check, tp=2, using=using)


def test_each_operator_sends_one_collective_a_pass_and_scatter_none_forward():
    sent = {
        "f": (None, "all_reduce"),
        "g": ("all_reduce", None),
        "scatter": (None, "all_gather"),
        "gather": ("all_gather", None),
        "sequence_all_gather": ("all_gather", "reduce_scatter"),
        "sequence_reduce_scatter": ("reduce_scatter", "all_gather"),
    }

    def check(mesh):
        for name, passes in sent.items():
            with mm.ledger() as log:
                getattr(mm, name)(value(0).requires_grad_(), mesh.tp).sum().backward()
            assert [(r.op, r.phase) for r in log.records] == [
                (op, phase) for op, phase in zip(passes, ("forward", "backward"), strict=True) if op
            ]

    mm.launch(check, tp=2)


def test_one_rank_sends_nothing():
    axis = mm.single().tp
    with mm.ledger() as log:
        for name in OPERATORS:
            x = value(0).requires_grad_()
            y = getattr(mm, name)(x, axis)
            y.backward(value(0, seed=1))
            assert torch.equal(y, x) and torch.equal(x.grad, value(0, seed=1))
    assert not log.records


def test_sizes_that_do_not_divide_and_dimensions_that_do_not_exist_are_errors():
    def check(mesh):
        x = torch.zeros(2, 5, 7)
        with pytest.raises(ValueError, match=r"7.*tp=2"):
            mm.scatter(x, mesh.tp)
        with pytest.raises(ValueError, match=r"5.*tp=2"):
            mm.scatter(x, mesh.tp, dim=-2)
        with pytest.raises(ValueError, match=r"5.*tp=2"):
            mm.sequence_reduce_scatter(x, mesh.tp)
        with pytest.raises(IndexError):
            mm.gather(x, mesh.tp, dim=3)

    mm.launch(check, tp=2)
