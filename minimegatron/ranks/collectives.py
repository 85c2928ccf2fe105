"""Every collective and every message of the course, in one place.

All are functions: the input keeps its value, the result is new (`inplace=True` is for buffers that
nobody else looks at). They carry no gradient; that is what the operators f and g are for
(`tensor_parallel/operators.py`). An axis of one rank sends nothing and records nothing.

On CPU a small all-reduce goes by pairwise exchange (recursive doubling: in round k, rank r trades
with rank r xor 2^k, log2(n) rounds), because gloo's own takes milliseconds whatever the size.
Beyond a megabyte gloo's ring moves fewer bytes and wins. See pitfalls of gloo in lesson 01.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ReduceOp

from minimegatron.ranks.ledger import TRACE, collective, phase, waiting
from minimegatron.ranks.mesh import Axis

# Above this many bytes gloo's ring is as fast as pairwise exchange (`minimegatron bench`).
PAIRWISE_LIMIT = 1 << 20
# Keeps our exchanges apart from messages that a learner's own code sends with small tags.
_TAG = 1 << 20
_OPS = {"sum": ReduceOp.SUM, "max": ReduceOp.MAX}
_COMBINE: dict[str, Callable[..., Tensor]] = {"sum": torch.add, "max": torch.maximum}


class Handle:
    """A collective under way; `wait()` finishes it and returns its result.

    `arrived()` tells whether it would return at once; False where nobody can know.
    """

    def __init__(
        self, finish: Callable[[], Tensor], arrived: Callable[[], bool] = lambda: False
    ) -> None:
        self._finish: Callable[[], Tensor] | None = finish
        self._result: Tensor | None = None
        self.arrived = arrived

    def wait(self) -> Tensor:
        """The result, once it is there."""
        if self._finish is not None:
            self._result, self._finish = self._finish(), None
        assert self._result is not None
        return self._result


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _run(
    op: str, axis: Axis, size: int, start: Callable[[], Callable[[], Tensor]], later: bool
) -> Any:
    """Record the collective, start it, and finish it now or when the handle is waited for."""
    with collective(op, axis.name, axis.ranks, size, later=later) as record:
        finish = start()
        if not later:
            return finish()

    def finish_recorded() -> Tensor:
        with waiting(op, axis.name, axis.ranks, size, record):
            return finish()

    return Handle(finish_recorded)


def _done(x: Tensor, later: bool) -> Any:
    return Handle(lambda: x) if later else x


def _check(x: Any, axis: Any, name: str) -> None:
    if not isinstance(x, Tensor) or not isinstance(axis, Axis):
        given = ", ".join(type(value).__name__ for value in (x, axis))
        raise TypeError(f"{name} takes a tensor and an axis such as mesh.tp, not ({given})")


def _staged(x: Tensor, axis: Axis) -> Tensor:
    """`x` without a graph, where the group can read it: gloo reads CPU memory."""
    x = x.detach()
    if x.is_cuda and dist.get_backend(axis.group) == "gloo":
        x = x.cpu()
    return x.contiguous()


def _dimension(x: Tensor, dim: int, axis: Axis | None = None) -> int:
    """`dim` counted from the front; with `axis`, its length must divide by the axis' size."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim={dim} does not exist in a tensor of shape {tuple(x.shape)}")
    if axis is not None and x.shape[dim] % axis.size:
        raise ValueError(
            f"dimension {dim} has length {x.shape[dim]}, which does not divide by "
            f"{axis.name}={axis.size}"
        )
    return dim % x.dim()


@overload
def all_reduce(
    x: Tensor, axis: Axis, op: str = ..., *, inplace: bool = ..., async_op: Literal[False] = ...
) -> Tensor: ...
@overload
def all_reduce(
    x: Tensor, axis: Axis, op: str = ..., *, inplace: bool = ..., async_op: Literal[True]
) -> Handle: ...
def all_reduce(
    x: Tensor, axis: Axis, op: str = "sum", *, inplace: bool = False, async_op: bool = False
) -> Tensor | Handle:
    """The sum (or "max") of every rank's `x`, on every rank: the same bits everywhere.

    `x` has any shape, the same on all ranks. `inplace=True` writes the result into `x`. With
    `async_op=True` it returns a Handle at once, and `handle.wait()` gives the result.
    Raises ValueError for another `op`, or for `inplace` on a tensor that is not contiguous.
    """
    _check(x, axis, "all_reduce")
    if op not in _OPS:
        raise ValueError(f"all_reduce knows op='sum' and op='max', not {op!r}")
    if inplace and not x.is_contiguous():
        raise ValueError("all_reduce in place needs a contiguous tensor: the sum would hit a copy")
    if axis.size == 1:
        return _done(x, async_op)

    def start() -> Callable[[], Tensor]:
        mine = _staged(x, axis)
        small = _size(mine) <= PAIRWISE_LIMIT and axis.size & (axis.size - 1) == 0
        if not mine.is_cuda and small:
            finish = _start_pairwise(mine, axis, op)
        else:
            total = mine if inplace or mine.device != x.device else mine.clone()
            work = dist.all_reduce(total, _OPS[op], axis.group, async_op=True)
            finish = _after(work, axis, lambda: total)

        def hand_over() -> Tensor:
            total = finish()
            if inplace:
                return total if total.data_ptr() == x.data_ptr() else x.detach().copy_(total)
            return total.to(x.device)

        return hand_over

    return _run("all_reduce", axis, _size(x), start, async_op)


def _after(work: Any, axis: Axis, result: Callable[[], Tensor]) -> Callable[[], Tensor]:
    record = TRACE.record
    if record is not None and dist.get_backend(axis.group) == "gloo":
        with contextlib.suppress(RuntimeError):  # its thread tells the time; a reduce-scatter's not
            work.get_future().add_done_callback(lambda _: record.arrived())

    def finish() -> Tensor:
        work.wait()
        return result()

    return finish


def _start_pairwise(mine: Tensor, axis: Axis, op: str) -> Callable[[], Tensor]:
    """Recursive doubling; the first exchange is posted at once, the others when waited for."""
    group, combine = axis.group, _COMBINE[op]
    # A number of its own for each all-reduce, so that two under way never mix.
    tag = _TAG + axis.next_exchange() % _TAG

    def post(value: Tensor, step: int) -> tuple[Any, Any, Tensor]:
        other, theirs = axis.rank ^ step, torch.empty_like(value)
        receiving = group.recv([theirs], other, tag)
        return group.send([value], other, tag), receiving, theirs

    first = post(mine, 1)

    def finish() -> Tensor:
        value, step, under_way = mine, 1, first
        while True:
            sending, receiving, theirs = under_way
            receiving.wait()
            # `theirs` is ours to overwrite; a + b and b + a have the same bits.
            combined = combine(value, theirs, out=theirs)
            sending.wait()
            value, step = combined, step * 2
            if step >= axis.size:
                return value
            under_way = post(value, step)

    return finish


def all_gather(x: Tensor, axis: Axis, dim: int = 0, *, async_op: bool = False) -> Any:
    """Every rank's `x`, joined along `dim` in rank order, on every rank.

    `x` has the same shape on all ranks; the result is `size` times as long along `dim`.
    """
    _check(x, axis, "all_gather")
    if axis.size == 1:
        return _done(x, async_op)
    dim = _dimension(x, dim)

    def start() -> Callable[[], Tensor]:
        mine = _staged(x, axis)
        parts = [torch.empty_like(mine) for _ in axis.ranks]
        work = dist.all_gather(parts, mine, axis.group, async_op=True)
        return _after(work, axis, lambda: torch.cat(parts, dim).to(x.device))

    return _run("all_gather", axis, _size(x) * axis.size, start, async_op)


def reduce_scatter(x: Tensor, axis: Axis, dim: int = 0, *, async_op: bool = False) -> Any:
    """This rank's part along `dim` of the sum of every rank's `x`.

    Raises ValueError where the length along `dim` does not divide by the axis' size.
    """
    _check(x, axis, "reduce_scatter")
    if axis.size == 1:
        return _done(x, async_op)
    dim = _dimension(x, dim, axis)

    def start() -> Callable[[], Tensor]:
        parts = [part.contiguous() for part in _staged(x, axis).chunk(axis.size, dim)]
        mine = torch.empty_like(parts[0])
        work = dist.reduce_scatter(mine, parts, group=axis.group, async_op=True)
        return _after(work, axis, lambda: mine.to(x.device))

    return _run("reduce_scatter", axis, _size(x), start, async_op)


def broadcast(x: Tensor, axis: Axis, source: int = 0) -> Tensor:
    """The `x` of the rank at position `source` along the axis, on every rank."""
    _check(x, axis, "broadcast")
    _peer(axis, source, "source")
    if axis.size == 1:
        return x

    def start() -> Callable[[], Tensor]:
        mine = _staged(x, axis)
        value = mine if mine.device != x.device else mine.clone()
        work = dist.broadcast(value, axis.ranks[source], axis.group, async_op=True)
        return _after(work, axis, lambda: value.to(x.device))

    result: Tensor = _run("broadcast", axis, _size(x), start, False)
    return result


def all_to_all(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """Part i of `x` along `dim` goes to rank i; the parts received are joined in rank order.

    Raises ValueError where the length along `dim` does not divide by the axis' size.
    """
    _check(x, axis, "all_to_all")
    if axis.size == 1:
        return x
    dim = _dimension(x, dim, axis)

    def start() -> Callable[[], Tensor]:
        mine = torch.stack(_staged(x, axis).chunk(axis.size, dim))
        theirs = torch.empty_like(mine)
        work = dist.all_to_all_single(theirs, mine, group=axis.group, async_op=True)
        return _after(work, axis, lambda: torch.cat(theirs.unbind(0), dim).to(x.device))

    result: Tensor = _run("all_to_all", axis, _size(x), start, False)
    return result


def _peer(axis: Axis, position: int, name: str) -> int:
    if not 0 <= position < axis.size:
        raise ValueError(
            f"{name}={position}: the axis {axis.name} has positions 0 to {axis.size - 1}"
        )
    return axis.ranks[position]


def send(x: Tensor, axis: Axis, to: int) -> None:
    """Send `x` to the rank at position `to` along the axis, and wait until it has gone."""
    _check(x, axis, "send")
    peer = _peer(axis, to, "to")
    if peer == axis.ranks[axis.rank]:
        raise ValueError(f"to={to}: a rank cannot send to itself")
    with collective("send", axis.name, axis.ranks, _size(x), peer=peer):
        dist.send(_staged(x, axis), peer, axis.group)


def recv(x: Tensor, axis: Axis, source: int) -> Tensor:
    """Receive into `x` what the rank at position `source` sends; returns `x`.

    `x` has the shape and dtype of what was sent. This one does write into its argument.
    """
    _check(x, axis, "recv")
    peer = _peer(axis, source, "source")
    if peer == axis.ranks[axis.rank]:
        raise ValueError(f"source={source}: a rank cannot receive from itself")
    with collective("recv", axis.name, axis.ranks, _size(x), peer=peer):
        buffer = _staged(x, axis)
        dist.recv(buffer, peer, axis.group)
        if buffer.data_ptr() != x.data_ptr():
            x.detach().copy_(buffer)
    return x


class Message(NamedTuple):
    """One of `exchange`: `op` "send" or "recv" with the rank at `position`; its ledger's phase."""

    op: str
    x: Tensor
    position: int
    phase: str = "forward"


def exchange(messages: Sequence[Message], axis: Axis) -> list[Handle]:
    """Starts all these messages, none of which waits for another; a handle for each.

    So two neighbours may both send first. A received tensor is written into its `x`. Megatron-LM:
    `_batched_p2p_ops` in `megatron/core/pipeline_parallel/p2p_communication.py`.
    """
    calls, started = [], []
    for op, x, position, of_phase in messages:
        peer, buffer = _peer(axis, position, "position"), _staged(x, axis)
        known = (op, axis.name, axis.ranks, _size(x))
        with phase(of_phase), collective(*known, peer=peer, later=True) as record:
            way = dist.isend if op == "send" else dist.irecv
            calls.append(dist.P2POp(way, buffer, peer, axis.group))
        started.append(((*known, record, peer), x, buffer))
    with waiting("exchange", axis.name, axis.ranks, 0, None):
        works = dist.batch_isend_irecv(calls)  # NCCL's is one for all

    def handle(work: Any, known: Any, x: Tensor, buffer: Tensor) -> Handle:
        def finish() -> Tensor:
            with waiting(*known):
                work.wait()
            return x if buffer.data_ptr() == x.data_ptr() else x.detach().copy_(buffer)

        return Handle(finish, work.is_completed)

    each = works if len(works) == len(started) else works * len(started)
    return [handle(work, *known) for work, known in zip(each, started, strict=True)]


def barrier(axis: Axis) -> None:
    """Wait until every rank of the axis has come here."""
    if not isinstance(axis, Axis):
        raise TypeError(f"barrier takes an axis such as mesh.tp, not {type(axis).__name__}")
    if axis.size > 1:
        with collective("barrier", axis.name, axis.ranks, 0):
            dist.barrier(axis.group)
