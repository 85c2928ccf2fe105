"""Every collective equals what plain arithmetic on all ranks' tensors gives."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import minimegatron as mm
from minimegatron.ranks.collectives import PAIRWISE_LIMIT


def _values(n, shape=(4, 6), dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=draw, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_collectives_equal_plain_arithmetic(n):
    values = _values(n, (12, n))

    def run(mesh):
        x = values[mesh.rank]
        kept = x.clone()
        out = {
            "sum": mm.all_reduce(x, mesh.tp),
            "max": mm.all_reduce(x, mesh.tp, "max"),
            "gather": mm.all_gather(x, mesh.tp, dim=1),
            "scatter": mm.reduce_scatter(x, mesh.tp, dim=-2),
            "broadcast": mm.broadcast(x, mesh.tp, source=1),
            "all_to_all": mm.all_to_all(x, mesh.tp, dim=1),
        }
        assert torch.equal(x, kept), "the input keeps its value"
        return out

    for rank, out in enumerate(mm.launch(run, tp=n)):
        assert (out["sum"] - values.sum(0)).abs().max() < 1e-12
        assert torch.equal(out["max"], values.max(0).values)
        assert torch.equal(out["gather"], torch.cat(list(values), 1))
        part = values.sum(0).chunk(n, 0)[rank]
        assert (out["scatter"] - part).abs().max() < 1e-12
        assert torch.equal(out["broadcast"], values[1])
        column = [value[:, rank : rank + 1] for value in values]
        assert torch.equal(out["all_to_all"], torch.cat(column, 1))


@pytest.mark.parametrize("elements", [1, 1000, PAIRWISE_LIMIT // 8 + 1])
def test_all_ranks_hold_the_same_bits_on_both_paths(elements):
    """Below the limit by pairwise exchange, above it by gloo's ring: equal to gloo's own sum."""

    def run(mesh):
        draw = torch.Generator().manual_seed(mesh.rank)
        x = torch.randn(elements, generator=draw, dtype=torch.float64)
        theirs = x.clone()
        dist.all_reduce(theirs)
        return mm.all_reduce(x, mesh.tp), theirs

    results = mm.launch(run, tp=4)
    assert all(torch.equal(mine, results[0][0]) for mine, _ in results)
    assert (results[0][0] - results[0][1]).abs().max() < 1e-12


def test_several_all_reduces_under_way_do_not_mix():
    def run(mesh):
        x = torch.full((3,), float(mesh.rank))
        handles = [mm.all_reduce(x + k, mesh.tp, async_op=True) for k in range(6)]
        between = mm.all_reduce(x, mesh.tp)
        return between, [handle.wait() for handle in reversed(handles)][::-1]

    for between, results in mm.launch(run, tp=4):
        assert between[0] == 6
        assert [r[0].item() for r in results] == [6 + 4 * k for k in range(6)]


def test_our_exchange_leaves_the_learners_messages_alone():
    def run(mesh):
        other = 1 - mesh.rank
        sending = dist.isend(torch.full((2,), 7.0), other)
        total = mm.all_reduce(torch.ones(2), mesh.tp)
        mine = torch.zeros(2)
        dist.recv(mine, other)
        sending.wait()
        return total, mine

    for total, mine in mm.launch(run, tp=2):
        assert total.tolist() == [2, 2] and mine.tolist() == [7, 7]


def test_in_place_reduces_into_the_tensor_itself_and_refuses_a_view_with_gaps():
    def run(mesh):
        x = torch.ones(4)
        mm.all_reduce(x, mesh.tp, inplace=True)
        big = torch.ones(PAIRWISE_LIMIT // 4 + 4)
        mm.all_reduce(big, mesh.tp, inplace=True)
        try:
            mm.all_reduce(torch.ones(4, 4).t()[:, :2], mesh.tp, inplace=True)
        except ValueError as error:
            return x, big[-1], str(error)

    x, last, words = mm.launch(run, tp=2)[0]
    assert x.tolist() == [2] * 4 and last == 2 and "contiguous" in words


def test_messages_go_where_they_are_sent():
    def ring(mesh):
        x, axis = torch.tensor([mesh.rank]), mesh.tp
        right, left = (axis.rank + 1) % axis.size, (axis.rank - 1) % axis.size
        if axis.rank % 2:
            got = mm.recv(torch.zeros_like(x), axis, left)
            mm.send(x, axis, right)
        else:
            mm.send(x, axis, right)
            got = mm.recv(torch.zeros_like(x), axis, left)
        return got.item()

    assert mm.launch(ring, tp=4) == [3, 0, 1, 2]


def test_along_an_axis_positions_count_not_global_ranks():
    def run(mesh):
        x = torch.tensor([float(mesh.rank)])
        return mm.all_gather(x, mesh.dp).tolist(), mm.broadcast(x, mesh.dp, source=1).item()

    assert mm.launch(run, tp=2, dp=2) == [
        ([0, 2], 2),
        ([1, 3], 3),
        ([0, 2], 2),
        ([1, 3], 3),
    ]


def test_an_axis_of_one_rank_changes_and_records_nothing():
    mesh, x = mm.single(), torch.arange(6.0).reshape(2, 3)
    with mm.ledger() as log:
        same = [
            mm.all_reduce(x, mesh.tp),
            mm.all_gather(x, mesh.tp),
            mm.reduce_scatter(x, mesh.tp),
            mm.broadcast(x, mesh.tp),
            mm.all_to_all(x, mesh.tp),
            mm.all_reduce(x, mesh.tp, async_op=True).wait(),
        ]
        mm.barrier(mesh.tp)
    assert all(y is x for y in same) and len(log) == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, a: mm.all_reduce(x, a, "mean"), ValueError, "'mean'"),
        (lambda x, a: mm.all_reduce(x, "tp"), TypeError, "an axis such as mesh.tp"),
        (lambda x, a: mm.all_reduce(3, a), TypeError, "takes a tensor"),
        (lambda x, a: mm.broadcast(x, a, source=5), ValueError, "positions 0 to 0"),
        (lambda x, a: mm.send(x, a, to=0), ValueError, "itself"),
    ],
)
def test_wrong_calls_are_told_what_is_allowed(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.ones(2), mm.single().tp)


def test_sizes_that_do_not_divide_name_both_numbers():
    def run(mesh):
        words = []
        for call in (mm.reduce_scatter, mm.all_to_all):
            try:
                call(torch.ones(5, 4), mesh.tp)
            except ValueError as error:
                words.append(str(error))
        return words

    for words in mm.launch(run, tp=2)[0]:
        assert "5" in words and "tp=2" in words
