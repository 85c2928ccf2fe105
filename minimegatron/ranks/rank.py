"""The rank's side: a process that waits for calls, runs each from a clean start, and answers.

`voice.py` carries what it prints to the cell, `rest.py` gives every call a clean start, and
`lifeline.py` ends it with the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minimegatron.ranks import place, shipping
from minimegatron.ranks.board import Board
from minimegatron.ranks.errors import Failure
from minimegatron.ranks.ledger import TRACE
from minimegatron.ranks.lifeline import leave_last_words, look, never_outlive_the_parent
from minimegatron.ranks.mesh import WAIT, Mesh
from minimegatron.ranks.rest import Rest, start_generators
from minimegatron.ranks.torch_calls import record_torch_calls
from minimegatron.ranks.using import use
from minimegatron.ranks.voice import flush, speak_into

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
    never_outlive_the_parent()
    speak_into(output)
    _keep_freed_memory()
    board = Board(Path(at.folder) / "board", at.rank)
    leave_last_words(board, Path(at.folder) / f"crash-{at.rank}")
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
    threading.Thread(target=look, args=(board, busy, calls), daemon=True, name="look").start()
    at_rest = Rest()
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


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors: it would give each back, and fault it in anew.

    A GPT step on tp=2 takes about a tenth less (measured with `minimegatron bench`'s step).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        with contextlib.suppress(AttributeError):  # another libc has no mallopt
            mmap_threshold, trim_threshold = -3, -1
            libc.mallopt(mmap_threshold, 32 << 20)
            libc.mallopt(trim_threshold, 256 << 20)


def _answer(
    at: Place, call: Call, meshes: dict[tuple[int, ...], Mesh], board: Board, at_rest: Rest
) -> Reply:
    fn: Any = None
    try:
        board.restart("")
        at_rest.restore(call.cwd, call.path, call.environment, call.threads)
        key = tuple(call.sizes.values())
        if key not in meshes:
            meshes[key] = Mesh(call.sizes, at.rank, torch.device(at.device))
        TRACE.restart()
        start_generators(call.seed)
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
    flush()
    return Reply(answer, failure, dict(TRACE.counts), dict(TRACE.sent), TRACE.received, tidy)


def _pack(result: Any) -> bytes:
    try:
        return shipping.pack_result(result)
    except Exception as error:
        kind = f"the result, of type {type(result).__name__}, cannot be sent back to the notebook"
        raise TypeError(f"{kind}: {error}") from None


def _axis_name(group: Any, meshes: dict[tuple[int, ...], Mesh]) -> str:
    """The axis a group of a direct torch call belongs to; "world" for the default group."""
    if group is None or group is dist.group.WORLD:
        return "world"
    for mesh in meshes.values():
        for axis in mesh.known_axes():
            if axis.size > 1 and axis.group is group:
                return axis.name
    return "a group of your own"
