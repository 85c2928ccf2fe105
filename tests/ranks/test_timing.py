"""A ledger knows when: messages and named work, on the clock that all ranks share."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
import torch.distributed as dist

import minimegatron as mm
from minimegatron.ranks.ledger import Record


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


def test_times_are_in_every_open_ledger_and_take_no_part_in_comparison_or_text():
    def run(mesh):
        logs = []
        with mm.ledger() as outer:
            for _ in range(2):
                with mm.ledger() as inner, mm.span("work"):
                    mm.all_reduce(torch.ones(4), mesh.tp)
                logs.append(inner)
        return outer, *logs

    outer, first, second = mm.launch(run, tp=2)[0]
    assert first == second and repr(first) == repr(second)
    assert first.records[0].posted < second.records[0].posted
    assert "posted" not in repr(first.records[0])
    assert [r.done for r in outer.records] == [first.records[0].done, second.records[0].done]
    assert outer.spans == first.spans + second.spans


def test_a_span_names_work_with_its_phase_and_only_while_a_ledger_is_open():
    def run(mesh):
        with mm.span("before"):
            pass
        with mm.ledger() as log:
            with mm.span("outer"), mm.phase("optimizer"), mm.span("inner"):
                time.sleep(0.002)
        return log.spans

    inner, outer = mm.launch(run)[0]
    assert (inner.name, inner.phase, outer.name, outer.phase) == (
        "inner", "optimizer", "outer", "forward",
    )  # fmt: skip
    assert 0 <= outer.begin <= inner.begin < inner.begin + 0.002 <= inner.end <= outer.end


def test_the_ranks_of_one_machine_share_the_clock():
    def run(mesh):
        with mm.ledger() as log:
            mm.barrier(mesh.tp)
            mm.all_reduce(torch.ones(4), mesh.tp)
        r = log.records[1]
        return r.posted, r.done

    (posted_0, done_0), (posted_1, done_1) = mm.launch(run, tp=2)
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
