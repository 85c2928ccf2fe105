"""The kernel's side of a pool of ranks: start them, listen to them, end them.

Ranks come from `server.py` and stay alive between calls. They meet through a file, so that no port
is ever opened by number.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from minimegatron.ranks import deadlock, errors, place, rank, server
from minimegatron.ranks.board import Board

START_UP = 120.0  # seconds for a rank to come up, the import of torch included
KEPT_RANKS = 16  # in all pools that wait for their next call
BYTES_PER_RANK = 100 << 20  # what a rank that has run a small model keeps to itself


class Pool:
    """Living ranks, one on each of `devices`, with one process group among them."""

    def __init__(self, backend: str, devices: tuple[str, ...]) -> None:
        self.world_size = len(devices)
        self.processes: list[Any] = []
        self.calls: list[Connection] = []
        self.outputs: list[Connection] = []
        check_memory(self.world_size)
        try:
            self._temporary = tempfile.TemporaryDirectory(
                prefix="minimegatron-", ignore_cleanup_errors=True
            )
            self.folder = Path(self._temporary.name)
            self.boards = Board.create(self.folder / "board", self.world_size)
        except OSError as error:
            raise OSError(
                f"the ranks need a temporary folder, and {tempfile.gettempdir()} refuses it "
                f"({error.strerror}): free some space or set TMPDIR"
            ) from None
        try:
            self._start(backend, devices)
        except BaseException:  # an interrupt too: a half-built pool leaves nothing behind
            self.end()
            raise

    def _start(self, backend: str, devices: tuple[str, ...]) -> None:
        context: Any = multiprocessing.get_context(server.METHOD)
        with server.starting():
            for number, device in enumerate(devices):
                mine, theirs = context.Pipe()
                hear, speak = context.Pipe(duplex=False)
                os.set_blocking(hear.fileno(), False)
                self.calls.append(mine)
                self.outputs.append(hear)
                at = (number, self.world_size, backend, device, self.folder, theirs, speak)
                self.processes.append(context.Process(target=rank.main, args=at, daemon=True))
                self.processes[-1].start()
                theirs.close()
                speak.close()
        for number, calls in enumerate(self.calls):
            with contextlib.suppress(EOFError, OSError):
                if calls.poll(START_UP) and calls.recv() == "ready":
                    continue
            said = self.hear(number).decode(errors="replace").strip()
            words = f"{errors.who(number, self.world_size)} could not start"
            raise errors.RankError(f"{words}\n{said}", number, said)

    def hear(self, number: int) -> bytes:
        """What a rank has printed and nobody has read yet; a pipe holds no more at a time."""
        try:
            return os.read(self.outputs[number].fileno(), 1 << 16)
        except OSError:
            return b""

    def died(self, number: int) -> errors.RankError:
        """The error for a rank whose process ended: by which signal or exit code, and where."""
        self.processes[number].join(5)
        code = self.processes[number].exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if how.endswith("SIGKILL"):
            how += " (by hand, or by the system for want of memory)"
        board, line = self.boards[number], self._crash_line(number)
        call = None if line else board.now
        where = f"last known line: {line or (call.line if call else board.line) or 'none'}"
        if call:
            where += f", in {call.op} on {call.axis}"
            # gloo aborts a process whose partner sends another number of bytes.
            differ = deadlock.first_difference(self.boards, set(), behind=False)
            if differ:
                where = "\n".join([where, "the ranks do not agree on it:", *differ])
        who = errors.who(number, self.world_size)
        return errors.RankError(f"{who} died: it {how}\n{where}", number, where)

    def _crash_line(self, number: int) -> str:
        """The learner's line in the report that faulthandler left; "" if it left none."""
        with contextlib.suppress(OSError):
            report = (self.folder / f"crash-{number}").read_text()
            for filename, line in re.findall(r'^  File "(.*)", line (\d+)', report, re.MULTILINE):
                if place.owner(filename) == "learner":
                    return place.name(filename, int(line))
        return ""

    def end(self) -> None:
        """Kill the ranks, with whatever they have started, and remove their folder."""
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            process.kill()
            with contextlib.suppress(OSError, AttributeError):  # Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)
        for end in (*self.calls, *self.outputs):
            end.close()
        for process in started:
            process.join(5)
        self._temporary.cleanup()


def check_memory(world_size: int) -> None:
    """ValueError where the machine, or its container, has no memory for so many ranks."""
    try:
        told = Path("/proc/meminfo").read_text()
    except OSError:  # not Linux: nobody knows
        return
    free = int(told.partition("MemAvailable:")[2].split()[0]) << 10
    group, needed = Path("/sys/fs/cgroup"), world_size * BYTES_PER_RANK
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        limit = int((group / "memory.max").read_text())
        free = max(0, min(free, limit - int((group / "memory.current").read_text())))
    if needed > free:
        raise ValueError(
            f"{world_size} ranks need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            f"free: ask for {max(1, free // BYTES_PER_RANK)} or fewer"
        )


class Pools:
    """The pools of this process: one for each number of ranks and device, the last few kept."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._pools: dict[Any, Pool] = {}

    def get(self, world_size: int, device: str) -> Pool:
        """A living pool, made where there is none."""
        key = _devices(world_size, device)
        pool = self._pools.pop(key, None)
        if pool is not None and not all(process.is_alive() for process in pool.processes):
            pool.end()
            pool = None
        if pool is None:
            while self._pools and sum(len(key[1]) for key in self._pools) + world_size > KEPT_RANKS:
                self.drop(next(iter(self._pools.values())))
            pool = Pool(*key)
        self._pools[key] = pool  # last used, last in the dict
        return pool

    def drop(self, pool: Pool) -> None:
        """End a pool that is not fit for another call."""
        self._pools = {key: other for key, other in self._pools.items() if other is not pool}
        pool.end()

    def end(self) -> None:
        """End them all, and the server they were forked from."""
        for pool in list(self._pools.values()):
            self.drop(pool)
        server.stop()


def _devices(world_size: int, device: str) -> tuple[str, tuple[str, ...]]:
    """The backend, and a device for each rank; fewer GPUs than ranks are shared, through gloo."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r}: choose 'auto', 'cpu' or 'cuda'")
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise ValueError("device='cuda': this machine shows no CUDA GPU; use 'auto' or 'cpu'")
    if not gpus:
        return "gloo", ("cpu",) * world_size
    backend = "nccl" if gpus >= world_size else "gloo"
    return backend, tuple(f"cuda:{number % gpus}" for number in range(world_size))
