"""The rank's side: a process that waits for calls, runs each from a clean start, and answers.

`lifeline.py` carries what it prints to the cell and ends it with the kernel.
"""

import contextlib
import ctypes
import functools
import os
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from minimegatron.ranks import errors, lifeline, place, shipping
from minimegatron.ranks.board import Board
from minimegatron.ranks.ledger import TRACE
from minimegatron.ranks.mesh import WAIT, Mesh
from minimegatron.ranks.torch_calls import record_torch_calls
from minimegatron.ranks.using import use


class Reply(NamedTuple):
    """A rank's answer: a packed result or a failure, and whether it is fit for the next call."""

    result: bytes
    failure: errors.Failure | None
    sequences: dict[tuple[int, ...], int]
    messages: Counter[int]
    tidy: bool


def main(
    number: int, world_size: int, backend: str, device: str, folder: Path,
    calls: Connection, output: Connection,
) -> None:  # fmt: skip
    """Run in the new process until the kernel hangs up."""
    lifeline.never_outlive_the_parent()
    lifeline.speak_into(output)
    _keep_freed_memory()
    board = TRACE.board = Board(folder / "board", number)
    lifeline.leave_last_words(board, folder / f"crash-{number}")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.set_default_device(device)
    if world_size > 1:
        meeting = (folder / "meeting").as_uri()
        dist.init_process_group(backend, meeting, WAIT, world_size, rank=number)
    record_torch_calls()
    shipping.read_sources_afresh()
    busy = threading.Event()
    threading.Thread(target=lifeline.look, args=(board, busy), daemon=True, name="look").start()
    at_rest = Rest()

    @functools.cache  # its groups are made once for each shape
    def mesh_of(**sizes: int) -> Mesh:
        return Mesh(sizes, number, torch.device(device))

    calls.send("ready")
    while True:
        try:
            call = calls.recv()
        except EOFError:
            os._exit(0)
        busy.set()
        reply = _answer(call, board, at_rest, mesh_of)
        busy.clear()
        calls.send(reply)


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors: it would give each back, and fault it in anew.

    A GPT step on tp=2 takes about a tenth less (measured with `minimegatron bench`'s step).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        with contextlib.suppress(AttributeError):  # another libc has no mallopt
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


class Rest:
    """The state of a rank between calls, from which each call starts.

    A cell that sets a default dtype, changes the folder or leaves a thread running must not change
    what the next cell sees; nor may a cell depend on what the one before it has drawn.
    """

    def __init__(self) -> None:
        self._filters = list(warnings.filters)
        self._threads = set(threading.enumerate())
        self._group = dist.group.WORLD if dist.is_initialized() else None
        numbers = signal.SIGTERM, getattr(signal, "SIGALRM", signal.SIGTERM)  # Windows lacks it
        self._signals = {number: signal.getsignal(number) for number in numbers}
        self._streams = sys.stdout, sys.stderr
        self._device = torch.get_default_device()

    def restore(self, cwd: str, path: Any, environment: Any, threads: int, seed: int) -> None:
        """Everything that a call could have left behind, as it was; the same seed for all ranks."""
        sys.stdout, sys.stderr = self._streams
        sys.path[:] = path
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(cwd)
        warnings.resetwarnings()
        warnings.filters[:] = self._filters  # type: ignore[index]
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != self._device:
            torch.set_default_device(None if self._device.type == "cpu" else self._device)
        torch.set_grad_enabled(True)
        torch.autograd.set_detect_anomaly(False)
        torch.set_float32_matmul_precision("highest")
        torch.set_printoptions(profile="default")
        # torch.use_deterministic_algorithms would import 800 modules in every rank.
        torch._C._set_deterministic_algorithms(False, warn_only=False)
        shipping.forget_modules()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def undisturbed(self) -> bool:
        """Whether the process group still stands and no thread was left running."""
        group = dist.group.WORLD if dist.is_initialized() else None
        return group is self._group and self._threads.issuperset(threading.enumerate())


def _answer(call: Any, board: Board, at_rest: Rest, mesh_of: Callable[..., Mesh]) -> Reply:
    """`call`: the packed (function, arguments, using), the mesh's sizes, what `restore` takes."""
    work, sizes, start = call
    try:
        board.restart()
        at_rest.restore(**start)
        mesh = mesh_of(**sizes)
        TRACE.restart()
        fn, args, using = shipping.unpack(work, mesh.device)
        code = getattr(fn, "__code__", None)
        if code is not None:
            board.at(place.name(code.co_filename, code.co_firstlineno))
        with use(using):
            result = fn(mesh, *args)
        answer, failure = shipping.pack_result(result), None
        tidy = at_rest.undisturbed()
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the learner is told
        answer, failure, tidy = b"", errors.Failure.of(error), False
    lifeline.flush()
    return Reply(answer, failure, TRACE.sequences, TRACE.messages, tidy)
