"""A pytest plug-in that mends two things in nbval, which runs the lessons as tests.

nbval waits for the kernel's messages without looking whether the kernel still lives, so that a cell
that kills it costs the whole time-out of a cell (2000 s by default). Here every wait looks once a
second. And nbval judges cells, not lessons: here a lesson whose cells together take longer than the
ini option `lesson_seconds` fails in its last cell.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

LOOK_EVERY = 1.0  # seconds between two looks at the kernel
LAST_WORDS = 0.2  # seconds for what a dead kernel had sent and we have not read yet

KILLED_IN = pytest.StashKey[int]()  # of a lesson: the cell that killed its kernel
SECONDS = pytest.StashKey[dict[Path, float]]()  # of a run: how long each lesson's cells took


class KernelDied(Exception):
    """The kernel's process ended while a cell ran; the message says how."""


class WatchfulKernel(RunningKernel):
    """nbval's kernel, whose waits end with KernelDied when its process ends."""

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK_EVERY if end is None else min(LOOK_EVERY, end - time.monotonic())
            try:
                return super().get_message(stream, timeout=max(left, 0))
            except Empty:
                if not self.is_alive():
                    return self._last_words(stream)
                if end is not None and time.monotonic() >= end:
                    raise

    def _last_words(self, stream: str) -> dict[str, Any]:
        try:
            return super().get_message(stream, timeout=LAST_WORDS)
        except Empty:
            raise KernelDied(how_it_ended(getattr(self, "km", None))) from None


def how_it_ended(manager: Any) -> str:
    """In words, the end of the process behind a jupyter_client KernelManager."""
    process = getattr(getattr(manager, "provisioner", None), "process", None)
    code = process.poll() if process is not None else None
    if code is None:
        return "the kernel died"
    if code < 0:
        return f"the kernel died of {signal.Signals(-code).name}"
    return f"the kernel ended itself with exit code {code}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("lesson_seconds", "a notebook that takes longer fails; 0: no limit", default="0")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[SECONDS] = {}
    if config.option.nbval or config.option.nbval_lax:
        import nbval.plugin

        nbval.plugin.RunningKernel = WatchfulKernel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    if not isinstance(item, IPyNbCell):
        return (yield)
    lesson, spent = item.parent, item.config.stash[SECONDS]
    killer = lesson.stash.get(KILLED_IN, None)
    if killer is not None:
        raise NbCellError(item.cell_num, f"not run: cell {killer} killed the kernel", "")
    start = time.monotonic()
    try:
        result = yield
    except KernelDied as death:
        lesson.stash[KILLED_IN] = item.cell_num
        lesson.kernel.kc.stop_channels()
        raise NbCellError(item.cell_num, f"{death}", item.cell.source) from None
    finally:
        spent[lesson.path] = spent.get(lesson.path, 0.0) + time.monotonic() - start
    limit = float(item.config.getini("lesson_seconds"))
    if 0 < limit < spent[lesson.path] and is_last(item, lesson):
        message = f"the lesson's cells took {spent[lesson.path]:.0f} s, its limit is {limit:g} s"
        raise NbCellError(item.cell_num, message, "")
    return result


def is_last(item: IPyNbCell, lesson: IPyNbFile) -> bool:
    """Whether no later cell of the lesson is run in this session."""
    return [other for other in item.session.items if other.parent is lesson][-1] is item


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for path, seconds in terminalreporter.config.stash[SECONDS].items():
        terminalreporter.write_line(f"{path.name}: {seconds:.1f} s")
