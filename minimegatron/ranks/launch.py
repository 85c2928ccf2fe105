"""`mm.launch`: run a function from a notebook's cell on several ranks.

Megatron-LM is started by torchrun, one process a GPU. Here the same processes serve a notebook:
they wait between cells, and each call sends them a function. The call collects results in rank
order, prints what the ranks print, and turns a failure of any rank into one short error.
"""

import atexit
import contextlib
import inspect
import os
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any

from minimegatron.ranks import server

server.start()  # while this process imports torch, below

# ruff: noqa: E402
from minimegatron.ranks import deadlock, errors, rank, shipping
from minimegatron.ranks import using as using_
from minimegatron.ranks.ledger import TRACE
from minimegatron.ranks.mesh import check_sizes
from minimegatron.ranks.pool import Pool, Pools
from minimegatron.ranks.progress import ProgressLine

_POOLS = Pools()
# gloo is told to stay on this machine.
_LOOPBACK = {"linux": {"GLOO_SOCKET_IFNAME": "lo"}, "darwin": {"GLOO_SOCKET_IFNAME": "lo0"}}
_POLL = 0.1  # seconds between two looks at the ranks' progress
# After a failure: how long to wait for ranks that are about to report their own, and how long a
# rank must stand still in a collective to be sure that it is not about to.
_GRACE, _STILL = 0.5, 0.06
_KEPT_OUTPUT = 1 << 20  # bytes of output kept from a rank that is not shown live


def launch(
    fn: Callable[..., Any], *args: Any,
    tp: int = 1, cp: int = 1, dp: int = 1, pp: int = 1, ep: int = 1,
    device: str = "auto", timeout: float | None = 60.0, seed: int = 0, threads: int = 1,
    using: Mapping[str, Any] | None = None,
) -> list[Any]:  # fmt: skip
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
    if TRACE.board is not None:
        raise RuntimeError("launch inside a rank: ranks start no ranks; call it in the notebook")
    _check_function(fn, args)
    sizes = check_sizes(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep)
    check_sizes(threads=threads)
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: give seconds above 0, or None to wait for ever")
    work = shipping.pack_call((fn, args, using_.check(using)))
    start: dict[str, Any] = {"cwd": os.getcwd(), "path": list(sys.path), "threads": threads}
    start |= {"environment": _LOOPBACK.get(sys.platform, {}) | dict(os.environ), "seed": seed}
    try:
        with _POOLS.lock:
            pool = _POOLS.get(tp * cp * dp * pp, device)
            return _Run(pool, timeout).results((work, sizes, start))
    except KeyboardInterrupt:
        raise _Interrupted() from None
    except errors.RankError as error:
        raise error.with_traceback(None) from None


def _check_function(fn: Any, args: tuple[Any, ...]) -> None:
    """TypeError where `fn(mesh, *args)` cannot be called."""
    if not callable(fn):
        raise TypeError(f"launch takes a function of (mesh, ...), not {type(fn).__name__}")
    with contextlib.suppress(ValueError):  # some builtins have none to look at
        signature = inspect.signature(fn)
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


class _Run:
    """One call on one pool, from the sending of the function to the last result."""

    def __init__(self, pool: Pool, timeout: float | None) -> None:
        self.pool, self.timeout = pool, timeout
        self.waiting = set(range(pool.world_size))  # ranks that have neither answered nor died
        self.replies: dict[int, rank.Reply] = {}
        self.dead: set[int] = set()
        self.said = [bytearray() for _ in self.waiting]  # not printed yet
        self.heard = 0  # bytes, of all ranks
        self.progress: list[int] = []
        self.since = 0.0  # when the progress was last seen to change

    def results(self, call: Any) -> list[Any]:
        """Send, wait, print; the unpacked results, or the error of the rank to blame."""
        fit, line, error = False, ProgressLine(), None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: seen below
                for to in self.pool.calls:
                    to.send(call)
            while self.waiting and error is None:
                self._listen(_POLL)
                most = max(board.entered for board in self.pool.boards)
                line.update(f"{self.pool.world_size} ranks · {most} collectives")
                error = self._failure()
            line.clear()
            for number, said in enumerate(self.said):
                self._take_output(number)
                self._print(number, len(said))
            if error is not None:
                raise error
            replies = [self.replies[number] for number in range(self.pool.world_size)]
            fit = _tidy(replies)
            return [shipping.unpack(reply.result) for reply in replies]
        finally:
            line.clear()
            if not fit:
                _POOLS.drop(self.pool)

    def _listen(self, seconds: float) -> None:
        """Wait for any rank to say something, and take it in."""
        pool = self.pool
        ends: dict[Any, int] = {}
        for number in self.waiting:
            sentinel = pool.processes[number].sentinel
            ends |= dict.fromkeys((pool.calls[number], pool.outputs[number], sentinel), number)
        for number in {ends[end] for end in connection.wait(list(ends), seconds)}:
            try:
                if pool.calls[number].poll():
                    self.replies[number] = pool.calls[number].recv()
                elif not pool.processes[number].is_alive():
                    self.dead.add(number)
            except (EOFError, OSError):
                self.dead.add(number)
            self.waiting -= {*self.replies, *self.dead}
            self._take_output(number)  # all of it: a rank speaks before it answers

    def _still(self) -> float:
        """Seconds since any rank was last seen to make progress."""
        progress = [board.progress for board in self.pool.boards]
        progress += [len(self.replies), self.heard]
        if progress != self.progress:
            self.progress, self.since = progress, time.monotonic()
        return time.monotonic() - self.since

    def _failure(self) -> errors.RankError | None:
        """Blames a dead rank first, a peer's lost connection last, else the lowest rank."""
        if self.timeout is not None and self._still() > self.timeout:
            return deadlock.explain(self.pool.boards, set(self.replies), self.timeout)
        if self.dead or any(reply.failure for reply in self.replies.values()):
            self._hear_the_others()
        if self.dead:
            return self.pool.died(min(self.dead))
        failures = {n: reply.failure for n, reply in self.replies.items() if reply.failure}
        if not failures:
            return None
        number = min(failures, key=lambda n: (failures[n].lost_peer, n))
        return errors.raised(number, self.pool.world_size, failures[number])

    def _hear_the_others(self) -> None:
        """One rank has failed: let those that fail by themselves say so, within the grace."""
        end = time.monotonic() + _GRACE
        while self.waiting and time.monotonic() < end:
            self._listen(0.01)
            inside = all(self.pool.boards[number].inside for number in self.waiting)
            if inside and self._still() > _STILL:
                return

    def _take_output(self, number: int) -> None:
        said, heard = self.said[number], self.pool.hear(number)
        self.heard += len(heard)
        said += heard
        if number == 0:
            self._print(0, said.rfind(b"\n") + 1)
        elif len(said) > _KEPT_OUTPUT:
            said[_KEPT_OUTPUT:] = b"\n... (more than is kept)\n"

    def _print(self, number: int, length: int) -> None:
        """The first `length` bytes of what a rank has said, with its name where there are more."""
        if not length:
            return
        text = self.said[number][:length].decode(errors="replace")
        del self.said[number][:length]
        if self.pool.world_size > 1:
            text = textwrap.indent(text, f"[rank {number}] ", bool).removesuffix("\n") + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()


def _tidy(replies: list[rank.Reply]) -> bool:
    """Whether the call left no communication half done, and no thread, behind."""
    under_way: Counter[int] = Counter()
    for reply in replies:
        under_way.update(reply.messages)
        for ranks, sequence in reply.sequences.items():
            if any(replies[other].sequences.get(ranks) != sequence for other in ranks):
                return False
    return not any(under_way.values()) and all(reply.tidy for reply in replies)
