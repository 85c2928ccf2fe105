"""The line that shows a long call is alive: after two seconds, only where somebody looks."""

from __future__ import annotations

import io
import sys

import pytest

from minimegatron.ranks import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("MINIMEGATRON_PROGRESS", raising=False)
    return now


def test_it_appears_after_two_seconds_and_leaves_nothing_behind(clock, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    line = progress.ProgressLine()
    clock[0] += 1.9
    line.update("too early")
    assert terminal.getvalue() == ""
    clock[0] += 0.2
    line.update("4 ranks")
    line.update("too soon after the last")
    assert terminal.getvalue() == "\r2 s · 4 ranks"
    line.clear()
    assert terminal.getvalue().endswith("\r" + " " * len("2 s · 4 ranks") + "\r")


@pytest.mark.parametrize("reason", ["a file", "nbval", "switched off"])
def test_it_is_off_where_nobody_looks_or_outputs_are_compared(clock, monkeypatch, reason):
    terminal = io.StringIO() if reason == "a file" else _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    if reason != "nbval":  # which leaves pytest's own mark in the environment
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
    if reason == "switched off":
        monkeypatch.setenv("MINIMEGATRON_PROGRESS", "0")
    line = progress.ProgressLine()
    clock[0] += 60
    line.update("4 ranks")
    line.clear()
    assert terminal.getvalue() == ""
