"""Failure is part of the lesson: who failed, where, in the same words each time, in seconds."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import pytest
import torch

import minimegatron as mm

HERE = "tests/ranks/test_errors.py, line"


def _fail(fn, error=None, **options):
    mm.launch(lambda mesh: None, tp=options.get("tp", 2))  # start-up is not counted
    begin = time.monotonic()
    with pytest.raises(error or mm.RankError) as caught:
        mm.launch(fn, **{"tp": 2, "timeout": 20} | options)
    assert time.monotonic() - begin < 5
    assert mm.launch(lambda mesh: mesh.rank, tp=2) == [0, 1], "the next call works"
    return caught.value


def test_a_rank_that_raises_reports_while_the_others_still_wait():
    def fn(mesh):
        if mesh.rank == 1:
            raise ValueError("my own words")
        mm.barrier(mesh.tp)

    error = _fail(fn)
    assert error.rank == 1 and "rank 1 of 2 raised ValueError" in str(error)
    assert str(error).endswith(error.traceback)
    assert HERE in error.traceback and 'raise ValueError("my own words")' in error.traceback
    assert error.traceback.endswith("ValueError: my own words")


def test_only_the_learners_lines_are_shown():
    def fn(mesh):
        mm.all_reduce("not a tensor", mesh.tp)

    error = _fail(fn)
    assert "minimegatron/" not in str(error) and 'mm.all_reduce("not a tensor"' in str(error)


def test_causes_are_told_too():
    def fn(mesh):
        try:
            {}["key"]
        except KeyError as error:
            raise RuntimeError("second") from error

    text = str(_fail(fn))
    assert text.index("KeyError: 'key'") < text.index("direct cause") < text.index("second")


def test_the_text_is_the_same_on_every_run():
    def fn(mesh):
        raise KeyError(mesh.rank)

    assert len({str(_fail(fn, tp=4)) for _ in range(3)}) == 1
    assert _fail(fn, tp=4).rank == 0, "the lowest of those that raised"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
        (lambda: ctypes.string_at(0), "killed by SIGSEGV"),
        (lambda: os.abort(), "killed by SIGABRT"),
    ],
)
def test_a_death_names_its_signal_or_exit_code_and_its_line(end, words):
    line = sys._getframe().f_lineno + 5

    def fn(mesh):
        mm.barrier(mesh.tp)
        if mesh.rank == 1:
            end()
        mm.barrier(mesh.tp)

    error = _fail(fn)
    assert error.rank == 1 and "rank 1 of 2 died" in str(error) and words in str(error)
    assert "last known line" in error.traceback and HERE in error.traceback
    assert line  # the lambda's line is the innermost of the learner's


def test_the_dead_are_blamed_before_those_that_raise_and_those_that_lost_a_peer():
    def fn(mesh):
        if mesh.rank == 2:
            os._exit(1)
        if mesh.rank == 1:
            time.sleep(0.05)
            raise ValueError("late")
        mm.barrier(mesh.tp)

    error = _fail(fn, tp=4)
    assert error.rank == 2


def test_a_lost_connection_is_the_last_to_be_blamed():
    def fn(mesh):
        if mesh.rank == 0:
            raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1")
        raise ValueError("the real cause")

    assert _fail(fn).rank == 1


def test_leaving_is_raising():
    assert "SystemExit: 3" in str(_fail(lambda mesh: sys.exit(3)))


@pytest.mark.parametrize("make", [lambda m: m, lambda m: [m.tp], lambda m: (i for i in "ab")])
def test_a_result_that_cannot_be_sent_is_an_error(make):
    error = _fail(make)
    assert "cannot be sent back" in str(error)


def test_a_rank_has_no_keyboard_and_starts_no_ranks():
    assert "mm.single()" in str(_fail(lambda mesh: breakpoint()))
    assert "inside a rank" in str(_fail(lambda mesh: mm.launch(print)))


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    mm.shutdown()  # ranks that live already need no folder
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="TMPDIR"):
        mm.launch(lambda mesh: None, tp=3)
    monkeypatch.undo()
    assert mm.launch(lambda mesh: mesh.rank, tp=3) == [0, 1, 2]


def test_a_rank_killed_between_two_calls_is_replaced():
    process = mm.launch(lambda mesh: os.getpid(), tp=2)[1]
    os.kill(process, signal.SIGKILL)
    time.sleep(0.2)
    assert mm.launch(lambda mesh: mm.all_reduce(torch.ones(1), mesh.tp).item(), tp=2) == [2, 2]
