"""What a rank says: everything it prints goes into one pipe, and reaches the cell from there.

At the level of file descriptors, so that C code and child processes are heard too. Nothing that a
rank says by itself holds a path or a process number.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from minimegatron.ranks import place


def speak_into(output: Connection) -> None:
    """Point stdout and stderr, for Python, C and child processes, into one pipe."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    options: dict[str, Any] = {"buffering": 1, "closefd": False}
    options |= {"encoding": "utf-8", "errors": "backslashreplace"}
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", **options)
    sys.stderr = open(2, "w", **options)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    sys.breakpointhook = _no_breakpoint


def flush() -> None:
    """Push out what Python and C still hold back, whatever the learner did to the streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


def _show_warning(
    message: Any, category: type[Warning], filename: str, line: int, *_: Any, **__: Any
) -> None:
    """Without the temporary path that a cell's file name would put into the text."""
    where = place.here() or place.name(filename, line)
    print(f"{category.__name__}: {message} ({where})")


def _no_breakpoint(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(
        "breakpoint() cannot stop inside a rank: it has no keyboard. Call the function in this "
        "process, fn(mm.single()), and the debugger works"
    )
