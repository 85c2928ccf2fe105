"""The kernel's side of a pool of ranks: start them, listen to them, end them.

Ranks come from `server.py` and stay alive between calls. They meet through a file, so that no port
is ever opened by number.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from minimegatron.ranks import place, rank, server
from minimegatron.ranks.board import Board
from minimegatron.ranks.deadlock import first_difference
from minimegatron.ranks.errors import RankError, died

START_UP = 120.0  # seconds for a rank to come up, the import of torch included
BYTES_PER_RANK = 100 << 20  # what a rank that has run a small model keeps to itself


class Pool:
    """`world_size` living ranks with one process group among them."""

    def __init__(self, world_size: int, backend: str, devices: list[str]) -> None:
        self.world_size = world_size
        self.processes: list[BaseProcess] = []
        self.calls: list[Connection] = []
        self.outputs: list[Connection] = []
        check_memory(world_size)
        self.folder, self.boards = _make_folder(world_size)
        try:
            self._start(backend, devices)
        except BaseException:  # an interrupt too: a half-built pool leaves nothing behind
            self.end()
            raise

    def _start(self, backend: str, devices: list[str]) -> None:
        context: Any = multiprocessing.get_context(server.METHOD)
        with server.starting():
            for number in range(self.world_size):
                at = rank.Place(number, self.world_size, backend, devices[number], str(self.folder))
                mine, theirs = context.Pipe()
                hear, speak = context.Pipe(duplex=False)
                self.calls.append(mine)
                self.outputs.append(hear)
                process = context.Process(
                    target=rank.main, args=(at, theirs, speak), name=f"rank {number}", daemon=True
                )
                self.processes.append(process)
                process.start()
                theirs.close()
                speak.close()
        for number in range(self.world_size):
            if not self._answers(number):
                said = self.hear(number).decode(errors="replace").strip()
                words = f"rank {number} of {self.world_size} could not start"
                raise RankError(f"{words}\n{said}", number, said)

    def _answers(self, number: int) -> bool:
        ends: list[Any] = [self.calls[number], self.processes[number].sentinel]
        connection.wait(ends, START_UP)
        try:
            return self.calls[number].poll() and self.calls[number].recv() == "ready"
        except (EOFError, OSError):
            return False

    def hear(self, number: int) -> bytes:
        """What a rank has printed and nobody has read yet."""
        heard = b""
        with contextlib.suppress(OSError, EOFError):
            while self.outputs[number].poll():
                data = os.read(self.outputs[number].fileno(), 1 << 16)
                if not data:
                    break
                heard += data
        return heard

    def alive(self) -> bool:
        """Whether every rank still runs."""
        return all(process.is_alive() for process in self.processes)

    def died(self, number: int) -> RankError:
        """The error for a rank whose process has ended."""
        self.processes[number].join(5)
        board, line = self.boards[number], self._crash_line(number)
        call = f"{board.now.op} on {board.now.axis}" if board.now and not line else ""
        last = board.now.line if board.now and not line else line or board.line
        # gloo aborts a process whose partner sends another number of bytes.
        differ = first_difference(self.boards, set(), behind=False) if board.now else []
        code = self.processes[number].exitcode
        if differ:
            differ = ["the ranks do not agree on it:", *differ]
        return died(number, self.world_size, code, last, call, differ)

    def _crash_line(self, number: int) -> str:
        """The learner's line in the report that faulthandler left; "" if it left none."""
        try:
            report = (self.folder / f"crash-{number}").read_text().splitlines()
        except OSError:
            return ""
        for entry in report:
            if entry.startswith('  File "') and '", line ' in entry:
                filename, _, rest = entry[8:].partition('", line ')
                if place.owner(filename) == "learner":
                    return place.name(filename, int(rest.split()[0]))
        return ""

    def end(self) -> None:
        """Kill the ranks, with whatever they have started, and remove their folder."""
        for process in self.processes:
            if process.pid is not None:
                with contextlib.suppress(OSError):
                    if os.name == "posix":
                        os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(OSError, AttributeError):
                    process.kill()
        for end in (*self.calls, *self.outputs):
            end.close()
        for process in self.processes:
            if process.pid is not None:
                process.join(5)
        shutil.rmtree(self.folder, ignore_errors=True)


def _make_folder(world_size: int) -> tuple[Path, list[Board]]:
    """A temporary folder with the ranks' board in it."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="minimegatron-"))
        return folder, Board.create(folder / "board", world_size)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            f"the ranks need a temporary folder, and {tempfile.gettempdir()} refuses it "
            f"({error.strerror}): free some space or set TMPDIR"
        ) from None


def check_memory(world_size: int) -> None:
    """ValueError where the machine has no memory for so many ranks."""
    free = free_memory()
    if free is not None and world_size * BYTES_PER_RANK > free:
        raise ValueError(
            f"{world_size} ranks need about {world_size * BYTES_PER_RANK / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free: ask for {max(1, free // BYTES_PER_RANK)} or fewer"
        )


def free_memory() -> int | None:
    """Bytes that new processes can have, the limit of a container included; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(0, free)


class Pools:
    """The pools of this process: one for each number of ranks and device, the last few kept."""

    KEPT_RANKS = 16

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._pools: dict[tuple[int, str, tuple[str, ...]], Pool] = {}

    def get(self, world_size: int, device: str) -> Pool:
        """A living pool, made where there is none."""
        backend, devices = _devices(world_size, device)
        key = (world_size, backend, tuple(devices))
        pool = self._pools.pop(key, None)
        if pool is not None and not pool.alive():
            pool.end()
            pool = None
        if pool is None:
            while sum(p.world_size for p in self._pools.values()) + world_size > self.KEPT_RANKS:
                if not self._pools:
                    break
                self._pools.pop(next(iter(self._pools))).end()
            pool = Pool(world_size, backend, devices)
        self._pools[key] = pool  # last used, last in the dict
        return pool

    def drop(self, pool: Pool) -> None:
        """End a pool that is not fit for another call."""
        for key, other in list(self._pools.items()):
            if other is pool:
                del self._pools[key]
        pool.end()

    def end(self) -> None:
        """End them all, and the server they were forked from."""
        while self._pools:
            self._pools.popitem()[1].end()
        server.stop()


def _devices(world_size: int, device: str) -> tuple[str, list[str]]:
    """The backend, and a device for each rank; fewer GPUs than ranks are shared, through gloo."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r}: choose 'auto', 'cpu' or 'cuda'")
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise ValueError("device='cuda': this machine shows no CUDA GPU; use 'auto' or 'cpu'")
    if not gpus:
        return "gloo", ["cpu"] * world_size
    backend = "nccl" if gpus >= world_size else "gloo"
    return backend, [f"cuda:{number % gpus}" for number in range(world_size)]
