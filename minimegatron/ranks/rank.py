"""The rank's side: a process that waits for calls, runs each from a clean start, and answers.

It prints into a pipe (at the level of file descriptors, so that C code and child processes are
heard too), tells the board where it is, and never outlives the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from minimegatron.ranks import place, shipping
from minimegatron.ranks.board import Board
from minimegatron.ranks.errors import Failure
from minimegatron.ranks.ledger import TRACE
from minimegatron.ranks.mesh import WAIT, Mesh
from minimegatron.ranks.torch_calls import record_torch_calls
from minimegatron.ranks.using import use

LOOK_EVERY = 0.05  # seconds between two looks at the line a rank is in
_in_rank = False


def in_rank() -> bool:
    """Whether this process is a rank of `launch`."""
    return _in_rank


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its pool, and what it talks through."""

    rank: int
    world_size: int
    backend: str
    device: str
    folder: str


@dataclass(frozen=True)
class Call:
    """One call: the packed (function, arguments, using) and the world it starts in."""

    work: bytes
    sizes: dict[str, int]
    seed: int
    threads: int
    cwd: str
    path: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """A rank's answer: a packed result or a failure, and whether it is fit for the next call."""

    result: bytes = b""
    failure: Failure | None = None
    counts: dict[tuple[int, ...], tuple[int, int]] | None = None
    sent: dict[int, int] | None = None
    received: int = 0
    tidy: bool = True


def main(at: Place, calls: Connection, output: Connection) -> None:
    """Run in the new process until the kernel hangs up."""
    global _in_rank
    _in_rank = True
    _never_outlive_the_parent()
    _speak_into(output)
    board = Board(Path(at.folder) / "board", at.rank)
    _leave_last_words(board, Path(at.folder) / f"crash-{at.rank}")
    device = torch.device(at.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_default_device(device)
    meeting = (Path(at.folder) / "meeting").as_uri()
    if at.world_size > 1:
        dist.init_process_group(
            at.backend,
            init_method=meeting,
            rank=at.rank,
            world_size=at.world_size,
            timeout=WAIT,
        )
    meshes: dict[tuple[int, ...], Mesh] = {}
    record_torch_calls(lambda group: _axis_name(group, meshes))
    sys.meta_path.insert(0, shipping.FreshSource())
    TRACE.board = board
    busy = threading.Event()
    threading.Thread(target=_look, args=(board, busy, calls), daemon=True, name="look").start()
    at_rest = _Rest()
    calls.send("ready")
    while True:
        try:
            call = calls.recv()
        except EOFError:
            os._exit(0)
        busy.set()
        reply = _answer(at, call, meshes, board, at_rest)
        busy.clear()
        calls.send(reply)


def _answer(
    at: Place, call: Call, meshes: dict[tuple[int, ...], Mesh], board: Board, at_rest: _Rest
) -> Reply:
    fn: Any = None
    try:
        board.restart("")
        at_rest.restore(call)
        key = tuple(call.sizes.values())
        if key not in meshes:
            meshes[key] = Mesh(call.sizes, at.rank, torch.device(at.device))
        TRACE.restart()
        _seed(call.seed)
        fn, args, using = shipping.unpack(call.work, meshes[key].device)
        code = getattr(fn, "__code__", None)
        if code is not None:
            board.at(place.name(code.co_filename, code.co_firstlineno))
        with use(using):
            result = fn(meshes[key], *args)
        answer = _pack(result)
        tidy = at_rest.undisturbed()
        failure = None
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the learner is told
        answer, tidy, failure = b"", False, Failure.of(error)
    _flush()
    return Reply(answer, failure, dict(TRACE.counts), dict(TRACE.sent), TRACE.received, tidy)


def _pack(result: Any) -> bytes:
    try:
        return shipping.pack_result(result)
    except Exception as error:
        kind = f"the result, of type {type(result).__name__}, cannot be sent back to the notebook"
        raise TypeError(f"{kind}: {error}") from None


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


class _Rest:
    """The state of a rank between calls, to which each call returns it."""

    def __init__(self) -> None:
        self._filters = list(warnings.filters)
        self._threads = set(threading.enumerate())
        self._group = dist.group.WORLD if dist.is_initialized() else None
        self._signals = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGALRM)}
        self._streams = sys.stdout, sys.stderr
        self._device = torch.get_default_device()

    def restore(self, call: Call) -> None:
        """Everything that a call could have left behind, as it was."""
        sys.stdout, sys.stderr = self._streams
        sys.path[:] = call.path
        if dict(os.environ) != call.environment:
            os.environ.clear()
            os.environ.update(call.environment)
        os.chdir(call.cwd)
        warnings.resetwarnings()
        warnings.filters[:] = self._filters  # type: ignore[index]
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        torch.set_num_threads(call.threads)
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != self._device:
            torch.set_default_device(self._device)
        torch.set_grad_enabled(True)
        torch.autograd.set_detect_anomaly(False)
        torch.set_float32_matmul_precision("highest")
        torch.set_printoptions(profile="default")
        # torch.use_deterministic_algorithms would import 800 modules in every rank.
        torch._C._set_deterministic_algorithms(False, warn_only=False)
        shipping.forget_modules()

    def undisturbed(self) -> bool:
        """Whether the process group still stands and no thread was left running."""
        group = dist.group.WORLD if dist.is_initialized() else None
        started = {t for t in threading.enumerate() if t.is_alive()} - self._threads
        return group is self._group and not started


def _axis_name(group: Any, meshes: dict[tuple[int, ...], Mesh]) -> str:
    """The axis a group of a direct torch call belongs to; "world" for the default group."""
    if group is None or group is dist.group.WORLD:
        return "world"
    for mesh in meshes.values():
        for axis in mesh.known_axes():
            if axis.size > 1 and axis.group is group:
                return axis.name
    return "a group of your own"


def _speak_into(output: Connection) -> None:
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


def _flush() -> None:
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


def _never_outlive_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts the whole process group
    if os.name != "posix":
        return
    os.setsid()
    from multiprocessing import forkserver, resource_tracker

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


def _end_at_once() -> None:
    """End this rank, with whatever it has started."""
    os.killpg(0, signal.SIGKILL)


def _leave_last_words(board: Board, crash: Path) -> None:
    """Write down the line in which this process is about to end."""
    faulthandler.enable(crash.open("w"), all_threads=False)
    leave = os._exit

    def leave_noted(code: int) -> NoReturn:
        board.at(place.here())
        _flush()
        leave(code)

    os._exit = leave_noted  # type: ignore[assignment]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.kill" and arguments[0] in (os.getpid(), 0):
            board.at(place.here())

    sys.addaudithook(note)


def _look(board: Board, busy: threading.Event, calls: Connection) -> None:
    """Now and then, tell the board which line the rank is in; end it if the kernel hung up."""
    main_thread = threading.main_thread().ident
    while True:
        busy.wait()
        time.sleep(LOOK_EVERY)
        if _hung_up(calls):
            _end_at_once()
        frame = sys._current_frames().get(main_thread or 0)
        line = place.of(frame)
        del frame
        if line and busy.is_set():
            board.at(line)


__all__ = ["Call", "Place", "Reply", "in_rank", "main"]
