"""The rank's side: a process that waits for calls, runs each from a clean start, and answers.

`voice.py` carries what it prints to the cell, `rest.py` gives every call a clean start, and
`lifeline.py` ends it with the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from minimegatron.ranks import place, shipping
from minimegatron.ranks.board import Board
from minimegatron.ranks.errors import Failure
from minimegatron.ranks.ledger import TRACE
from minimegatron.ranks.lifeline import leave_last_words, look, never_outlive_the_parent
from minimegatron.ranks.mesh import WAIT, Mesh
from minimegatron.ranks.rest import Rest
from minimegatron.ranks.torch_calls import record_torch_calls
from minimegatron.ranks.using import use
from minimegatron.ranks.voice import flush, speak_into


class Reply(NamedTuple):
    """A rank's answer: a packed result or a failure, and whether it is fit for the next call."""

    result: bytes
    failure: Failure | None
    sequences: dict[tuple[int, ...], int]
    messages: Counter[int]
    tidy: bool


def main(
    number: int, world_size: int, backend: str, device: str, folder: Path,
    calls: Connection, output: Connection,
) -> None:  # fmt: skip
    """Run in the new process until the kernel hangs up."""
    never_outlive_the_parent()
    speak_into(output)
    _keep_freed_memory()
    board = TRACE.board = Board(folder / "board", number)
    leave_last_words(board, folder / f"crash-{number}")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.set_default_device(device)
    if world_size > 1:
        meeting = (folder / "meeting").as_uri()
        dist.init_process_group(backend, meeting, WAIT, world_size, rank=number)
    record_torch_calls()
    shipping.read_sources_afresh()
    busy = threading.Event()
    threading.Thread(target=look, args=(board, busy, calls), daemon=True, name="look").start()
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
            mmap_threshold, trim_threshold = -3, -1
            libc.mallopt(mmap_threshold, 32 << 20)
            libc.mallopt(trim_threshold, 256 << 20)


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
        answer, failure, tidy = b"", Failure.of(error), False
    flush()
    return Reply(answer, failure, TRACE.sequences, TRACE.messages, tidy)
