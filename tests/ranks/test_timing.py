"""A ledger knows when: messages, named work, and a network as slow as a cost model says."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
import torch.distributed as dist

import minimegatron as mm
from minimegatron.ranks.ledger import Record
from minimegatron.ranks.timing import arrival

MS = 1e-3


def record(posted, waited, done):
    return Record("all_reduce", "tp", 2, "forward", 8, 8.0, "here", posted, waited, done)


def test_a_blocking_message_is_waited_for_from_its_start_and_an_async_one_from_its_wait():
    def run(mesh):
        with mm.ledger() as log:
            mm.all_reduce(torch.ones(4), mesh.tp)
            handle = mm.all_reduce(torch.ones(4), mesh.tp, async_op=True)
            started = copy.copy(log.records[1])
            handle.wait()
            mm.barrier(mesh.tp)
            dist.all_reduce(torch.ones(4))
            work = dist.all_reduce(torch.ones(4), async_op=True)
            work.wait()
        return log, started

    for log, started in mm.launch(run, tp=2):
        blocking, later, barrier, direct, direct_later = log.records
        for r in (blocking, barrier, direct):
            assert 0 < r.posted == r.waited < r.done
        assert (started.waited, started.done) == (None, None)
        assert blocking.done < later.posted < later.waited < later.done < barrier.posted
        assert (direct_later.waited, direct_later.done) == (None, None)  # torch's own handle


def test_times_are_each_ledgers_own_and_take_no_part_in_comparison_or_text():
    def run(mesh):
        with mm.ledger() as outer:
            time.sleep(0.01)
            with mm.ledger() as inner, mm.span("work"):
                mm.all_reduce(torch.ones(4), mesh.tp)
        return outer, inner

    outer, inner = mm.launch(run, tp=2)[0]
    assert outer == inner
    assert outer.records[0].posted - inner.records[0].posted > 9 * MS
    assert outer.records[0].posted - inner.records[0].posted == pytest.approx(
        inner.opened - outer.opened
    )
    assert outer.spans[0].begin - inner.spans[0].begin > 9 * MS
    assert "posted" not in repr(outer.records[0]) and repr(outer) == repr(inner)


def test_a_span_names_work_with_its_phase_and_only_while_a_ledger_is_open():
    def run(mesh):
        with mm.span("before"):
            pass
        with mm.ledger() as log:
            with mm.span("outer"), mm.phase("optimizer"), mm.span("inner"):
                time.sleep(2 * MS)
        return log.spans

    inner, outer = mm.launch(run)[0]
    assert (inner.name, inner.phase, outer.name, outer.phase) == (
        "inner", "optimizer", "outer", "forward",
    )  # fmt: skip
    assert 0 <= outer.begin <= inner.begin < inner.begin + 2 * MS <= inner.end <= outer.end


def test_the_ranks_of_one_machine_share_the_clock():
    def run(mesh):
        with mm.ledger() as log:
            mm.barrier(mesh.tp)
            mm.all_reduce(torch.ones(4), mesh.tp)
        (barrier, r) = log.records
        return log.opened + barrier.done, log.opened + r.posted, log.opened + r.done

    (_, posted_0, done_0), (_, posted_1, done_1) = mm.launch(run, tp=2)
    assert max(posted_0, posted_1) < min(done_0, done_1)  # nobody has a sum before all have begun


@pytest.mark.parametrize(
    ("times", "share"),
    [
        ([], 0.0),
        ([(0, 0, 4)], 0.0),  # waited for at once
        ([(0, 3, 4)], 0.75),
        ([(0, 9, 4)], 1.0),  # there before it was waited for
        ([(0, 3, 4), (0, 4, 8)], 1 - (1 + 4) / 8),  # two under way, waited for in turn
        ([(0, 6, 4), (2, 6, 8)], 1 - 2 / 8),
        ([(0, 3, 4), (1, None, None)], 0.75),  # nobody has waited for the second
    ],
)
def test_the_share_hidden_is_what_no_rank_stood_still_for(times, share):
    log = mm.Ledger(records=[record(*three) for three in times])
    assert log.hidden() == pytest.approx(share)
    assert log.hidden(axis="dp") == 0.0


@pytest.mark.parametrize("work", [0.0, 0.1, 0.3])
def test_a_slow_network_takes_its_time_and_what_is_done_meanwhile_is_hidden(work):
    def run(mesh):
        x = torch.full((4,), 1.0 + mesh.rank)
        with mm.slow_network(lambda op, size, n: 0.2), mm.ledger() as log:
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

        with mm.slow_network(seconds), mm.ledger() as log:
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


def test_a_slow_network_ends_with_its_block_and_with_the_call():
    def forever(mesh):
        mm.slow_network(lambda op, size, n: 9.0).__enter__()

    def run(mesh):
        with mm.slow_network(lambda op, size, n: 9.0):
            pass
        return arrival("all_reduce", 8, 2)

    mm.launch(forever, tp=2)
    assert mm.launch(run, tp=2) == [0.0, 0.0]


def test_gloos_own_thread_tells_when_a_large_sum_is_there():
    def run(mesh):
        with mm.ledger() as log:
            handle = mm.all_reduce(torch.ones(1 << 20), mesh.tp, async_op=True)
            time.sleep(0.3)
            handle.wait()
            mm.reduce_scatter(torch.ones(1 << 20), mesh.tp)
        return log.records, threading.active_count()

    (early, blocking), threads = mm.launch(run, tp=2)[0]
    assert early.done < early.waited
    assert blocking.done > blocking.posted
    assert threads < 5
