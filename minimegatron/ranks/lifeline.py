"""What ties a rank to the kernel: it speaks into the cell, and never outlives the kernel.

All that it prints goes into one pipe at the level of file descriptors, so that C code and child
processes are heard too; nothing that a rank says by itself holds a path or a process number.

Two ways to end with the kernel: the system's parent-death signal (Linux), and a thread that finds
the parent gone. The same thread tells the board, now and then, which line the rank is in; a death
that the rank can see coming is written down exactly.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import warnings
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from minimegatron.ranks import place
from minimegatron.ranks.board import Board

LOOK_EVERY = 0.05  # seconds between two looks at the line a rank is in


def never_outlive_the_parent() -> None:
    """In a new rank: leave the kernel's signals alone and die with the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts the whole process group
    if os.name != "posix":
        return
    os.setsid()
    # Ranks inherit the descriptor whose closing ends the forkserver: with it they would keep each
    # other alive when the kernel dies.
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    tracker: Any = resource_tracker._resource_tracker  # type: ignore[attr-defined]
    for owner, name in ((server, "_forkserver_alive_fd"), (tracker, "_fd")):
        descriptor = getattr(owner, name, None)
        if descriptor is not None:
            os.close(descriptor)
            setattr(owner, name, None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def leave_last_words(board: Board, crash: Path) -> None:
    """Write down the line in which this process is about to end."""
    faulthandler.enable(crash.open("w"), all_threads=False)
    leave = os._exit

    def leave_noted(code: int) -> NoReturn:
        board.at(place.here())
        flush()
        leave(code)

    os._exit = leave_noted  # type: ignore[assignment]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.kill" and arguments[0] in (os.getpid(), 0):
            board.at(place.here())

    sys.addaudithook(note)


def look(board: Board, busy: threading.Event) -> None:
    """Now and then, tell the board which line the rank is in; end it if its parent has gone."""
    main_thread, parent = threading.main_thread().ident, os.getppid()
    while True:
        busy.wait()
        time.sleep(LOOK_EVERY)
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)  # this rank, with whatever it has started
        line = place.of(sys._current_frames().get(main_thread or 0))
        if line and busy.is_set():
            board.at(line)


def speak_into(output: Connection) -> None:
    """Point stdout and stderr, for Python, C and child processes, into one pipe."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    options: Any = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(fd, "w", closefd=False, **options) for fd in (1, 2))
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
    advice = "Call the function in this process, fn(mm.single()), and the debugger works"
    raise RuntimeError(f"breakpoint() cannot stop inside a rank: it has no keyboard. {advice}")
