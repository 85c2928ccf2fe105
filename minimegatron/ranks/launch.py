"""`mm.launch`: run a function from a notebook's cell on several ranks.

Megatron-LM is started by torchrun, one process a GPU. Here the same processes serve a notebook:
they wait between cells, and each call sends them a function. The call collects results in rank
order, prints what the ranks print, and turns a failure of any rank into one short error.
"""

from __future__ import annotations

import atexit
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any

from minimegatron.ranks import server

server.start()  # while this process imports torch, below

# ruff: noqa: E402
from minimegatron.ranks import errors, rank, shipping
from minimegatron.ranks import using as using_
from minimegatron.ranks.deadlock import explain
from minimegatron.ranks.mesh import check_sizes
from minimegatron.ranks.pool import Pool, Pools
from minimegatron.ranks.progress import ProgressLine

_POOLS = Pools()
_POLL = 0.1  # seconds between two looks at the ranks' progress
# After a failure: how long to wait for ranks that are about to report their own, and how long a
# rank must stand still in a collective to be sure that it is not about to.
_GRACE, _STILL = 0.5, 0.06
_KEPT_OUTPUT = 1 << 20  # bytes of output kept from a rank that is not shown live


def launch(
    fn: Callable[..., Any],
    *args: Any,
    tp: int = 1,
    cp: int = 1,
    dp: int = 1,
    pp: int = 1,
    ep: int = 1,
    device: str = "auto",
    timeout: float | None = 60.0,
    seed: int = 0,
    threads: int = 1,
    using: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Run `fn(mesh, *args)` on tp*cp*dp*pp ranks; their results, in rank order.

    `fn` may be defined in a cell and close over variables. `timeout` counts the seconds in which no
    rank makes progress (a collective, a print, a return); None waits for ever. Every rank gets the
    same `seed`, and `threads` threads. `using={"f": my_f}` puts a piece of yours in place of the
    package's. Tensors come back detached and on the CPU. On a rank that has a GPU, tensors that you
    send arrive on it, and new ones are made there: the same cell runs on any machine.

    Raises RankError when a rank raises or dies, RankTimeout when time runs out, ValueError for
    sizes that cannot be, TypeError for a function or argument that cannot be sent.
    """
    __tracebackhide__ = True  # IPython leaves this frame out
    if rank.in_rank():
        raise RuntimeError("launch inside a rank: ranks start no ranks; call it in the notebook")
    _check_function(fn, args)
    sizes = check_sizes(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep)
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: give seconds above 0, or None to wait for ever")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads={threads!r}: a rank has a whole number of threads, at least 1")
    call = rank.Call(
        shipping.pack_call((fn, args, using_.check(using))),
        sizes,
        seed,
        threads,
        os.getcwd(),
        list(sys.path),
        _environment(),
    )
    try:
        with _POOLS.lock:
            pool = _POOLS.get(tp * cp * dp * pp, device)
            return _Run(pool, call, timeout).results()
    except KeyboardInterrupt:
        raise _Interrupted() from None
    except errors.RankError as error:
        raise error.with_traceback(None) from None


def _check_function(fn: Any, args: tuple[Any, ...]) -> None:
    """TypeError where `fn(mesh, *args)` cannot be called."""
    if not callable(fn):
        raise TypeError(f"launch takes a function of (mesh, ...), not {type(fn).__name__}")
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some builtins have none to look at
        return
    try:
        signature.bind(None, *args)
    except TypeError as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        given = "the mesh" + (f" and {len(args)} more" if args else "")
        raise TypeError(f"launch gives {name}{signature} {given}: {error}") from None


class _Interrupted(KeyboardInterrupt):
    """The learner's interrupt, which IPython shows without our frames."""

    def _render_traceback_(self) -> list[str]:
        return ["KeyboardInterrupt: the ranks were stopped"]


def shutdown() -> None:
    """End all ranks. The next `launch` starts new ones; the kernel's end does this by itself."""
    with _POOLS.lock:
        _POOLS.end()


atexit.register(shutdown)


def _environment() -> dict[str, str]:
    """The kernel's environment; gloo is told to stay on this machine."""
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return ({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}) | dict(os.environ)


class _Run:
    """One call on one pool, from the sending of the function to the last result."""

    def __init__(self, pool: Pool, call: rank.Call, timeout: float | None) -> None:
        self.pool, self.call, self.timeout = pool, call, timeout
        self.replies: dict[int, rank.Reply] = {}
        self.dead: set[int] = set()
        self.kept = [bytearray() for _ in range(pool.world_size)]
        self.line_open = False  # whether rank 0's last line still waits for its end
        self.heard = 0
        self.last_progress = (time.monotonic(), -1)

    def results(self) -> list[Any]:
        """Send, wait, print; the unpacked results, or the error of the rank to blame."""
        fit, progress = False, ProgressLine()
        try:
            for to in self.pool.calls:
                to.send(self.call)
            while len(self.replies) + len(self.dead) < self.pool.world_size:
                self._listen(_POLL)
                progress.update(f"{self.pool.world_size} ranks · {self._collectives()} collectives")
                if self.dead or any(r.failure for r in self.replies.values()):
                    self._hear_the_others()
                    break
                self._check_progress()
            progress.clear()
            self._print_the_rest()
            self._raise_failure()
            replies = [self.replies[number] for number in range(self.pool.world_size)]
            fit = _tidy(replies)
            return [shipping.unpack(reply.result) for reply in replies]
        except (BrokenPipeError, ConnectionResetError):  # a rank died before it was sent its call
            self._listen(0)
            self._raise_failure()
            raise
        finally:
            progress.clear()
            if not fit:
                _POOLS.drop(self.pool)

    def _listen(self, seconds: float) -> None:
        """Wait for any rank to say something, and take it in."""
        settled = {*self.replies, *self.dead}
        waiting = [n for n in range(self.pool.world_size) if n not in settled]
        pool = self.pool
        ends = [e for n in waiting for e in (pool.calls[n], pool.outputs[n])]
        sentinels = [pool.processes[n].sentinel for n in waiting]
        ready = set(connection.wait([*ends, *sentinels], seconds))
        for number in waiting:
            if pool.outputs[number] in ready:
                self._take_output(number)
            if pool.calls[number] in ready:
                try:
                    self.replies[number] = pool.calls[number].recv()
                except (EOFError, OSError):
                    self.dead.add(number)
                self._take_output(number)
            elif pool.processes[number].sentinel in ready:
                self.dead.add(number)
                self._take_output(number)

    def _collectives(self) -> int:
        return max(board.entered for board in self.pool.boards)

    def _check_progress(self) -> None:
        """RankTimeout where nothing has moved for `timeout` seconds."""
        if self.timeout is None:
            return
        counted = sum(b.progress for b in self.pool.boards) + len(self.replies) + self.heard
        now = time.monotonic()
        if counted != self.last_progress[1]:
            self.last_progress = (now, counted)
        elif now - self.last_progress[0] > self.timeout:
            error = explain(self.pool.boards, set(self.replies), self.timeout)
            self._print_the_rest()
            raise error

    def _hear_the_others(self) -> None:
        """One rank has failed: let those that fail by themselves say so, within the grace."""
        end = time.monotonic() + _GRACE
        moved = dict.fromkeys(range(self.pool.world_size), (-1, 0.0))
        while time.monotonic() < end:
            self._listen(0.01)
            pending = False
            for number, board in enumerate(self.pool.boards):
                if number in self.replies or number in self.dead:
                    continue
                now = time.monotonic()
                if moved[number][0] != board.progress:
                    moved[number] = (board.progress, now)
                still = board.inside and now - moved[number][1] > _STILL
                pending = pending or not still
            if not pending:
                return

    def _raise_failure(self) -> None:
        """Blame a dead rank first, a peer's lost connection last, else the lowest rank."""
        if self.dead:
            raise self.pool.died(min(self.dead))
        failures = {n: r.failure for n, r in self.replies.items() if r.failure is not None}
        if failures:
            number = min(failures, key=lambda n: (failures[n].lost_peer, n))
            raise errors.raised(number, self.pool.world_size, failures[number])

    def _take_output(self, number: int) -> None:
        data = self.pool.hear(number)
        self.heard += len(data)
        room = _KEPT_OUTPUT - len(self.kept[number])
        if number == 0 or room > 0:
            self.kept[number] += data
            if number and len(data) > room:
                self.kept[number] += b"\n... (more than is kept)\n"
        if number == 0 and b"\n" in self.kept[0]:
            ready, _, rest = bytes(self.kept[0]).rpartition(b"\n")
            self.kept[0] = bytearray(rest)
            self._print(0, ready + b"\n")

    def _print_the_rest(self) -> None:
        for number in range(self.pool.world_size):
            self._take_output(number)
            if self.kept[number]:
                self._print(number, bytes(self.kept[number]))
                self.kept[number].clear()

    def _print(self, number: int, data: bytes) -> None:
        text = data.decode(errors="replace")
        if self.pool.world_size > 1:
            lines = text.splitlines(keepends=True)
            text = "".join(f"[rank {number}] {line}" for line in lines)
            text += "" if text.endswith("\n") else "\n"
        sys.stdout.write(text)
        sys.stdout.flush()


def _tidy(replies: list[rank.Reply]) -> bool:
    """Whether the call left no communication half done, and no thread, behind."""
    for number, reply in enumerate(replies):
        counts = reply.counts or {}
        for ranks, count in counts.items():
            if any((replies[other].counts or {}).get(ranks) != count for other in ranks):
                return False
        if sum((other.sent or {}).get(number, 0) for other in replies) != reply.received:
            return False
    return all(reply.tidy for reply in replies)
