"""Who waits where: ranks that disagree are told apart, in seconds."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

import minimegatron as mm

HERE = "tests/ranks/test_deadlock.py, line"


def _timeout(fn, **options):
    mm.launch(lambda mesh: None, tp=2, dp=options.get("dp", 1))  # start-up is not counted
    begin = time.monotonic()
    with pytest.raises(mm.RankTimeout) as caught:
        mm.launch(fn, **{"tp": 2, "timeout": 0.5} | options)
    assert time.monotonic() - begin < 5
    return caught.value


def test_bug_24_one_rank_skips_a_collective():
    def fn(mesh):
        mm.barrier(mesh.tp)
        if mesh.rank == 0:
            mm.all_reduce(torch.ones(1), mesh.tp)

    error = _timeout(fn)
    assert isinstance(error, mm.RankError) and error.rank == 0
    assert f"rank 0 waits in all_reduce on tp, {HERE}" in str(error)
    assert "rank 1 has returned" in str(error)
    assert "first differ at number 2" in str(error)
    assert str(_timeout(fn)) == str(error)


def test_bug_25_collectives_in_another_order():
    def fn(mesh):
        x = torch.ones(2)
        mm.all_reduce(x, mesh.tp)
        if mesh.rank == 0:
            mm.all_gather(x, mesh.tp)
            mm.all_reduce(x, mesh.tp)
        else:
            mm.all_reduce(x, mesh.tp)
            mm.all_gather(x, mesh.tp)

    error = str(_timeout(fn))
    assert "first differ at number 2" in error
    assert f"rank 0: all_gather of 16 bytes, {HERE}" in error
    assert f"rank 1: all_reduce of 8 bytes, {HERE}" in error


@pytest.mark.parametrize("elements", [2, 1 << 20])
@pytest.mark.parametrize("direct", [False, True])
def test_tensors_of_other_sizes_are_told_apart(elements, direct):
    def fn(mesh):
        x = torch.ones(elements + mesh.rank)
        if direct:
            dist.all_reduce(x)
        else:
            mm.all_reduce(x, mesh.tp)

    with pytest.raises(mm.RankError) as caught:  # gloo waits for ever, or aborts the process
        mm.launch(fn, tp=2, timeout=0.5)
    for rank in range(2):
        size = 4 * (elements + rank)
        assert f"rank {rank}: all_reduce of {size} bytes, {HERE}" in str(caught.value)


def test_torchs_own_calls_on_the_whole_world_are_named_so():
    def fn(mesh):
        if mesh.rank == 0:
            dist.all_reduce(torch.ones(1))
        else:
            time.sleep(60)

    error = str(_timeout(fn))
    assert f"rank 0 waits in all_reduce on the whole world, {HERE}" in error
    assert f"rank 1 is in no collective, {HERE}" in error


def test_only_the_axis_that_disagrees_is_shown():
    def fn(mesh):
        mm.all_reduce(torch.ones(1), mesh.tp)
        if mesh.dp.rank == 1:
            mm.all_reduce(torch.ones(1), mesh.dp)

    error = str(_timeout(fn, dp=2))
    assert "collectives on dp first differ at number 1" in error and "on tp first" not in error


def test_bug_18_both_neighbours_send_first():
    def fn(mesh):
        x = torch.ones(4_000_000)  # too large to wait in a socket's buffer
        mm.send(x, mesh.tp, 1 - mesh.rank)
        mm.recv(x, mesh.tp, 1 - mesh.rank)

    error = str(_timeout(fn))
    assert "rank 0 waits in send to rank 1 on tp" in error
    assert "rank 1 waits in send to rank 0 on tp" in error


def test_a_rank_that_computes_for_ever_is_found_by_its_line():
    def fn(mesh):
        while mesh.rank == 1:
            pass

    assert f"rank 1 is in no collective, {HERE}" in str(_timeout(fn))


def test_progress_of_any_kind_keeps_a_call_alive():
    def talk(mesh):
        for _ in range(6):
            time.sleep(0.2)
            print("still here", flush=True)

    def communicate(mesh):
        for _ in range(6):
            time.sleep(0.2)
            mm.barrier(mesh.tp)

    mm.launch(talk, tp=2, timeout=0.6)
    mm.launch(communicate, tp=2, timeout=0.6)


def test_none_waits():
    assert mm.launch(lambda mesh: time.sleep(0.8), tp=2, timeout=None) == [None, None]
