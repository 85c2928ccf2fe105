"""The hierarchical all-reduce, against a plain sum and the bytes of its three steps."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm

CONFIG = mm.GPTConfig(vocab_size=19, seq_length=6, hidden_size=16, num_layers=2, num_heads=4)
SHAPE = (4, 6)  # 24 numbers divide by every size here


def numbers(rank, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def over_nodes(mesh, ranks_per_node, shape=SHAPE):
    inside, across = mm.split_axis(mesh.dp, ranks_per_node)
    with mm.ledger() as log:
        total = mm.hierarchical_all_reduce(numbers(mesh.rank, shape), inside, across)
    return total, log, inside.ranks, across.ranks


@pytest.mark.parametrize("ranks_per_node", [1, 2, 4])
@pytest.mark.parametrize("shape", [SHAPE, (7,), (1,)])  # 7 numbers are padded
def test_it_is_the_sum_of_all_ranks_with_the_same_bits_everywhere(ranks_per_node, shape):
    wanted = sum(numbers(rank, shape) for rank in range(4))
    totals = [r[0] for r in mm.launch(over_nodes, ranks_per_node, shape, dp=4)]
    torch.testing.assert_close(totals[0], wanted, rtol=1e-10, atol=1e-14)
    assert all(torch.equal(total, totals[0]) for total in totals)


def test_the_input_keeps_its_value():
    def run(mesh):
        x = numbers(mesh.rank)
        mm.hierarchical_all_reduce(x, *mm.split_axis(mesh.dp, 2))
        return torch.equal(x, numbers(mesh.rank))

    assert all(mm.launch(run, dp=4))


def test_neighbours_share_a_node_and_equal_places_meet_across():
    found = [r[2:] for r in mm.launch(over_nodes, 2, dp=4)]
    assert found == [([0, 1], [0, 2]), ([0, 1], [1, 3]), ([2, 3], [0, 2]), ([2, 3], [1, 3])]


def test_a_split_of_dp_beside_tp_leaves_out_the_other_tensor_parallel_rank():
    def run(mesh):
        inside, across = mm.split_axis(mesh.dp, 2)
        total = mm.hierarchical_all_reduce(torch.tensor([float(mesh.rank)]), inside, across)
        return inside.ranks, across.ranks, total.item()

    found = mm.launch(run, tp=2, dp=4)
    assert found[5] == ([5, 7], [1, 5], 1 + 3 + 5 + 7)  # odd ranks are tensor-parallel rank 1
    assert found[0] == ([0, 2], [0, 4], 0 + 2 + 4 + 6)


def test_two_axes_of_a_mesh_serve_as_well():
    def run(mesh):
        x = numbers(mesh.rank)
        total = mm.hierarchical_all_reduce(x, mesh.tp, mesh.dp)
        both = mm.all_reduce(x, mesh.axis("tp", "dp"))
        return torch.allclose(total, both, rtol=1e-10, atol=1e-14)

    assert all(mm.launch(run, tp=2, dp=2))


@pytest.mark.parametrize("ranks_per_node", [1, 2, 4])
def test_a_rank_sends_all_but_its_share_inside_and_only_its_share_across(ranks_per_node):
    g, m, size = ranks_per_node, 4 // ranks_per_node, 24 * 8
    for _, log, _, _ in mm.launch(over_nodes, g, dp=4):
        assert log.wire_bytes(axis="dp.inside") == 2 * (g - 1) / g * size
        assert log.wire_bytes(axis="dp.across") == 2 * (m - 1) / m * size / g
        assert len(log) == log.count(axis="dp.inside") + log.count(axis="dp.across")


def test_the_slow_link_carries_less_than_under_a_flat_ring():
    def flat(mesh):
        with mm.ledger() as log:
            mm.all_reduce(numbers(mesh.rank), mesh.dp)
        return log.wire_bytes()

    # In a ring over two nodes one rank of each node sends to the other node, all it sends.
    by_flat_ring = mm.launch(flat, dp=4)[0]
    ranks = mm.launch(over_nodes, 2, dp=4)
    by_node = sum(ranks[r][1].wire_bytes(axis="dp.across") for r in (0, 1))
    assert (by_flat_ring, by_node) == (1.5 * 192, 1.0 * 192)


@pytest.mark.parametrize("ranks_per_node", [0, 3, 8, -2])
def test_nodes_of_unequal_size_are_an_error_that_names_both_numbers(ranks_per_node):
    message = f"ranks_per_node={ranks_per_node} does not divide dp=4"
    with pytest.raises(mm.RankError, match=message):
        mm.launch(lambda mesh: mm.split_axis(mesh.dp, ranks_per_node), dp=4)


def test_a_rank_that_stays_away_is_named_with_the_axis_where_the_others_wait():
    def run(mesh):
        inside, across = mm.split_axis(mesh.dp, 2)
        if mesh.rank != 3:
            mm.hierarchical_all_reduce(torch.ones(4), inside, across)

    with pytest.raises(mm.RankTimeout, match="dp.across"):
        mm.launch(run, dp=4, timeout=2)


@pytest.mark.parametrize("split", [{"dp": 4}, {"tp": 2, "dp": 4}])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_models_gradients_are_those_of_the_flat_all_reduce(split, overlap):
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(19, (2, 8, 6), generator=generator)
    for i in range(8):
        targets[i, 1 + i // 2 :] = -100  # other numbers of real targets on each rank

    def run(mesh, ranks_per_node):
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        model = mm.GPT(CONFIG, mesh)
        if ranks_per_node:
            mm.reduce_by_nodes(model, ranks_per_node)
        mine = [t.chunk(mesh.dp.size)[mesh.dp.rank] for t in (tokens, targets)]
        with mm.ledger() as log:
            if overlap:
                with mm.overlap_gradients(model, bucket_bytes=4000):
                    model.loss(*mine).backward()
            else:
                model.loss(*mine).backward()
            mm.finish_gradients(model)
        return model.full_gradients(), log

    flat, plain = mm.launch(run, 0, **split)[0]
    ranks = mm.launch(run, 2, **split)
    for found, log in ranks:
        for name, gradient in flat.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=name)
        assert log.count(axis="dp") == 1  # the number of tokens
        assert log.count(axis="dp.inside") == 2 * log.count(axis="dp.across") > 0
        assert log.count(axis="dp.across") == plain.count(axis="dp") - 1  # one for each bucket
