"""The cost model against messages counted one by one, and against its published terms."""

from __future__ import annotations

import pytest

from minimegatron.analysis.network import Link, Topology, collective_seconds

SLOW, FAST = Link(20e-6, 12.5e9), Link(2e-6, 300e9)
SIZE = 3 << 20


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_ring_is_its_messages_one_after_another(n: int) -> None:
    message = SLOW.latency + SIZE / n / SLOW.bandwidth  # every step moves 1/n of the tensor
    for op, steps in {
        "all_gather": n - 1,
        "reduce_scatter": n - 1,
        "all_reduce": 2 * (n - 1),
    }.items():
        assert collective_seconds(op, SIZE, n, SLOW) == pytest.approx(sum([message] * steps))


def test_a_message_and_a_broadcast_move_the_whole_tensor() -> None:
    assert collective_seconds("send", SIZE, 2, SLOW) == SLOW.latency + SIZE / SLOW.bandwidth
    free = Link(0, SLOW.bandwidth)
    assert collective_seconds("broadcast", SIZE, 8, free) == SIZE / SLOW.bandwidth


def test_one_rank_waits_for_nobody() -> None:
    assert collective_seconds("all_reduce", SIZE, 1, SLOW) == 0
    assert Topology(1, 1, FAST, SLOW).ring_seconds("all_reduce", SIZE) == 0
    assert Topology(1, 1, FAST, SLOW).hierarchical_seconds(SIZE) == 0


def test_inside_one_node_both_are_the_ring() -> None:
    node = Topology(1, 8, FAST, SLOW)
    expected = collective_seconds("all_reduce", SIZE, 8, FAST)
    assert node.ring_seconds("all_reduce", SIZE) == pytest.approx(expected)
    assert node.hierarchical_seconds(SIZE) == pytest.approx(expected)


def test_ranks_that_are_alone_in_their_nodes_know_only_the_slow_link() -> None:
    far = Topology(8, 1, FAST, SLOW)
    expected = collective_seconds("all_reduce", SIZE, 8, SLOW)
    assert far.ring_seconds("all_reduce", SIZE) == pytest.approx(expected)
    assert far.hierarchical_seconds(SIZE) == pytest.approx(expected)


def test_the_ring_waits_at_every_step_for_its_slowest_link() -> None:
    cluster = Topology(2, 4, FAST, SLOW)
    expected = collective_seconds("all_reduce", SIZE, 8, SLOW)
    assert cluster.ring_seconds("all_reduce", SIZE) == expected


def test_three_steps_are_counted_one_by_one() -> None:
    cluster = Topology(4, 8, FAST, SLOW, adapters=2)
    inside = 7 * (FAST.latency + SIZE / 8 / FAST.bandwidth)
    # Eight ranks share two adapters: a quarter of one each, for an eighth of the tensor.
    across = 2 * 3 * (SLOW.latency + SIZE / 8 / 4 / (SLOW.bandwidth / 4))
    assert cluster.hierarchical_seconds(SIZE) == pytest.approx(2 * inside + across)


def test_three_steps_win_by_their_adapters_and_by_fewer_slow_messages() -> None:
    alone, many = (Topology(16, 8, FAST, SLOW, adapters) for adapters in (1, 8))
    large, small = 1 << 30, 1 << 10
    ring = alone.ring_seconds("all_reduce", large)
    assert ring == many.ring_seconds("all_reduce", large)
    assert alone.hierarchical_seconds(large) == pytest.approx(ring, rel=0.1)  # the same slow link
    assert many.hierarchical_seconds(large) < ring / 5
    assert alone.hierarchical_seconds(small) < alone.ring_seconds("all_reduce", small) / 4


def test_more_adapters_than_ranks_help_nobody() -> None:
    eight, nine = (Topology(4, 8, FAST, SLOW, adapters) for adapters in (8, 9))
    assert eight.hierarchical_seconds(SIZE) == nine.hierarchical_seconds(SIZE)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="'gossip' is not one of all_reduce"):
        collective_seconds("gossip", SIZE, 2, SLOW)
    with pytest.raises(ValueError, match="bandwidth=0"):
        Link(0, 0)
