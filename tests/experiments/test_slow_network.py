"""A network as slow as a cost model says: same numbers, and what is done meanwhile is hidden."""

from __future__ import annotations

import time

import pytest
import torch

import minimegatron as mm
from minimegatron.experiments.slow_network import slow_network


@pytest.mark.parametrize("work", [0.0, 0.1, 0.3])
def test_a_slow_network_takes_its_time_and_what_is_done_meanwhile_is_hidden(work):
    def run(mesh):
        x = torch.full((4,), 1.0 + mesh.rank)
        with slow_network(lambda op, size, n: 0.2), mm.ledger() as log:
            mm.barrier(mesh.tp)
            begin = time.perf_counter()
            handle = mm.all_reduce(x, mesh.tp, async_op=True)
            time.sleep(work)
            result = handle.wait()
            taken = time.perf_counter() - begin
        return result, taken, log

    for result, taken, log in mm.launch(run, tp=2):
        assert torch.equal(result, torch.full((4,), 3.0))
        assert max(0.2, work) <= taken < 0.2 + work + 0.15 * (work == 0)  # less than both in turn
        r = log.select("all_reduce")[0]
        assert r.done - r.posted > 0.199
        assert (r.done < r.waited) == (work > 0.2)
        share = log.hidden(op="all_reduce")
        assert {0.0: share < 0.3, 0.1: 0.2 < share < 0.8, 0.3: share == 1.0}[work]


def test_a_slow_network_carries_one_message_at_a_time_and_gets_the_models_arguments():
    asked = []

    def run(mesh):
        def seconds(op, size, n):
            asked.append((op, size, n))
            return 0.02

        with slow_network(seconds), mm.ledger() as log:
            begin = time.perf_counter()
            first = mm.all_reduce(torch.ones(4), mesh.tp, async_op=True)
            second = mm.all_gather(torch.ones(4), mesh.tp, async_op=True)
            second.wait()
            both = time.perf_counter() - begin
            first.wait()
            first_done = log.records[0].done
        mm.all_reduce(torch.ones(4), mesh.tp)  # at the machine's own pace again
        return asked, both, log.records[1].done - first_done

    asked, both, later = mm.launch(run, tp=2)[0]
    assert asked == [("all_reduce", 16, 2), ("all_gather", 32, 2)]
    assert both >= 0.04 and later >= 0.019


@pytest.mark.parametrize("elements", [4, 1 << 20])  # pairwise exchange, and gloo's ring
def test_a_peer_that_starts_late_makes_its_message_late(elements):
    def run(mesh):
        x = torch.ones(elements)
        with slow_network(lambda op, size, n: 0.05), mm.ledger() as log:
            mm.barrier(mesh.tp)
            time.sleep(0.3 * mesh.rank)
            handle = mm.all_reduce(x, mesh.tp, async_op=True)
            time.sleep(0.1 * (1 - mesh.rank))
            handle.wait()
        return log.records[1]

    early, late = mm.launch(run, tp=2)
    assert early.posted + 0.2 < late.posted <= early.done
    assert late.posted + 0.049 <= late.done
