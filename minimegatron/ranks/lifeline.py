"""A rank never outlives the kernel, and leaves its last words when it dies.

Two ways to end with the kernel: the system's parent-death signal (Linux), and a thread that finds
the kernel's end of the pipe closed. The same thread tells the board, now and then, which line the
rank is in; a death that the rank can see coming is written down exactly.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from minimegatron.ranks import place
from minimegatron.ranks.board import Board
from minimegatron.ranks.voice import flush

LOOK_EVERY = 0.05  # seconds between two looks at the line a rank is in


def never_outlive_the_parent() -> None:
    """In a new rank: leave the kernel's signals alone and die with the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts the whole process group
    if os.name != "posix":
        return
    os.setsid()
    # Ranks inherit the descriptor whose closing ends the forkserver: with it they would keep each
    # other alive when the kernel dies.
    for owner, name in (
        (forkserver._forkserver, "_forkserver_alive_fd"),  # type: ignore[attr-defined]
        (resource_tracker._resource_tracker, "_fd"),  # type: ignore[attr-defined]
    ):
        descriptor = getattr(owner, name, None)
        if descriptor is not None:
            os.close(descriptor)
            setattr(owner, name, None)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _hung_up(calls: Connection) -> bool:
    """Whether the kernel's end of the pipe is closed (on Windows the main thread notices)."""
    if os.name != "posix":
        return False
    with socket.socket(fileno=os.dup(calls.fileno())) as end:
        try:
            return end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


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


def look(board: Board, busy: threading.Event, calls: Connection) -> None:
    """Now and then, tell the board which line the rank is in; end it if the kernel hung up."""
    main_thread = threading.main_thread().ident
    while True:
        busy.wait()
        time.sleep(LOOK_EVERY)
        if _hung_up(calls):
            os.killpg(0, signal.SIGKILL)  # this rank, with whatever it has started
        frame = sys._current_frames().get(main_thread or 0)
        line = place.of(frame)
        del frame
        if line and busy.is_set():
            board.at(line)
