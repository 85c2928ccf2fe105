"""Every collective and every message of the course, in one place.

All are functions: the input keeps its value, the result is new (`inplace=True` is for buffers that
nobody else looks at). They carry no gradient; that is what the operators f and g are for
(`tensor_parallel/operators.py`). An axis of one rank sends nothing and records nothing.

On CPU a small all-reduce goes by pairwise exchange (recursive doubling: in round k, rank r trades
with rank r xor 2^k, log2(n) rounds), because gloo's own takes milliseconds whatever the size.
Beyond a megabyte gloo's ring moves fewer bytes and wins. See pitfalls of gloo in lesson 01.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from minimegatron.ranks.board import Call
from minimegatron.ranks.ledger import TRACE, collective, phase, waiting
from minimegatron.ranks.mesh import Axis

# Above this many bytes gloo's ring is as fast as pairwise exchange (`minimegatron bench`).
PAIRWISE_LIMIT = 1 << 20
# Keeps our exchanges apart from messages that a learner's own code sends with small tags.
_TAG = 1 << 20
# How torch.distributed names the operation, and the function that does it to two tensors.
_OPS: Any = {"sum": (dist.ReduceOp.SUM, torch.add), "max": (dist.ReduceOp.MAX, torch.maximum)}
_Finish = Callable[[], Tensor]  # waits, and returns the result


class Handle:
    """A collective under way; `wait()` finishes it and returns its result.

    `arrived()` tells whether it would return at once; False where nobody can know.
    """

    def __init__(self, finish: _Finish, arrived: Callable[[], bool] = lambda: False) -> None:
        self._finish: _Finish | None = finish
        self._result: Any = None
        self.arrived = arrived

    def wait(self) -> Tensor:
        """The result, once it is there."""
        if self._finish is not None:
            self._result, self._finish = self._finish(), None
        return self._result


def _run(op: str, x: Tensor, axis: Axis, size: int, start: Any, later: bool = False) -> Any:
    """Record the collective, `start()` it, and finish it now or when the handle is waited for."""
    if axis.size == 1:
        return Handle(lambda: x) if later else x
    call = Call(op, axis.name, axis.ranks, size)
    with collective(call, later) as record:
        finish = start()
        if not later:
            return finish()

    def finish_recorded() -> Tensor:
        with waiting(call, record):
            return finish()

    return Handle(finish_recorded)


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


def _into(x: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory of `x`, where it may lie already."""
    return value if value.data_ptr() == x.data_ptr() else x.detach().copy_(value)


def _dimension(name: str, x: Tensor, axis: Axis, dim: int, divide: bool = True) -> int:
    """`dim` counted from the front; where it is to `divide`, the axis' size must divide it."""
    _check(x, axis, name)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim={dim} does not exist in a tensor of shape {tuple(x.shape)}")
    if divide and x.shape[dim] % axis.size:
        known = f"dimension {dim} has length {x.shape[dim]}"
        raise ValueError(f"{known}, which does not divide by {axis.name}={axis.size}")
    return dim % x.dim()


def all_reduce(
    x: Tensor, axis: Axis, op: str = "sum", *, inplace: bool = False, async_op: bool = False
) -> Any:
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
    name, combine = _OPS[op]

    def start() -> _Finish:
        mine = _staged(x, axis)
        if not mine.is_cuda and mine.nbytes <= PAIRWISE_LIMIT and axis.size.bit_count() == 1:
            rounds = _pairwise(mine, axis, combine)
            next(rounds)
            finish: _Finish = functools.partial(next, rounds)
        else:
            total = mine if inplace or mine.device != x.device else mine.clone()
            work = dist.all_reduce(total, name, axis.group, async_op=True)
            finish = _after(work, axis, lambda: total)
        if inplace:
            return lambda: _into(x, finish())
        return lambda: finish().to(x.device)

    return _run("all_reduce", x, axis, x.nbytes, start, async_op)


def _after(work: Any, axis: Axis, result: _Finish) -> _Finish:
    record = TRACE.record
    if record is not None and dist.get_backend(axis.group) == "gloo":
        with contextlib.suppress(RuntimeError):  # its thread tells the time; a reduce-scatter's not
            work.get_future().add_done_callback(lambda _: record.arrived())

    def finish() -> Tensor:
        work.wait()
        return result()

    return finish


def _pairwise(value: Tensor, axis: Axis, combine: Callable[..., Tensor]) -> Iterator[Tensor]:
    """Recursive doubling. `next` posts the first exchange; a second `next` gives the result."""
    # A number of its own for each all-reduce, so that two under way never mix.
    tag = _TAG + next(axis.exchanges) % _TAG
    step = 1
    while step < axis.size:
        other, theirs = axis.rank ^ step, torch.empty_like(value)
        receiving = axis.group.recv([theirs], other, tag)
        sending = axis.group.send([value], other, tag)
        if step == 1:
            yield value
        receiving.wait()
        # `theirs` is ours to overwrite; a + b and b + a have the same bits.
        combine(value, theirs, out=theirs)
        sending.wait()
        value, step = theirs, step * 2
    yield value


def all_gather(x: Tensor, axis: Axis, dim: int = 0, *, async_op: bool = False) -> Any:
    """Every rank's `x`, joined along `dim` in rank order, on every rank.

    `x` has the same shape on all ranks; the result is `size` times as long along `dim`.
    """
    dim = _dimension("all_gather", x, axis, dim, divide=False)

    def start() -> _Finish:
        mine = _staged(x, axis)
        parts = [torch.empty_like(mine) for _ in axis.ranks]
        work = dist.all_gather(parts, mine, axis.group, async_op=True)
        return _after(work, axis, lambda: torch.cat(parts, dim).to(x.device))

    return _run("all_gather", x, axis, x.nbytes * axis.size, start, async_op)


def reduce_scatter(x: Tensor, axis: Axis, dim: int = 0, *, async_op: bool = False) -> Any:
    """This rank's part along `dim` of the sum of every rank's `x`.

    Raises ValueError where the length along `dim` does not divide by the axis' size.
    """
    dim = _dimension("reduce_scatter", x, axis, dim)

    def start() -> _Finish:
        parts = [part.contiguous() for part in _staged(x, axis).chunk(axis.size, dim)]
        mine = torch.empty_like(parts[0])
        work = dist.reduce_scatter(mine, parts, group=axis.group, async_op=True)
        return _after(work, axis, lambda: mine.to(x.device))

    return _run("reduce_scatter", x, axis, x.nbytes, start, async_op)


def broadcast(x: Tensor, axis: Axis, source: int = 0) -> Tensor:
    """The `x` of the rank at position `source` along the axis, on every rank."""
    _check(x, axis, "broadcast")
    _peer(axis, source, "source")

    def start() -> _Finish:
        mine = _staged(x, axis)
        value = mine if mine.device != x.device else mine.clone()
        work = dist.broadcast(value, axis.ranks[source], axis.group, async_op=True)
        return _after(work, axis, lambda: value.to(x.device))

    return _run("broadcast", x, axis, x.nbytes, start)


def all_to_all(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """Part i of `x` along `dim` goes to rank i; the parts received are joined in rank order.

    Raises ValueError where the length along `dim` does not divide by the axis' size.
    """
    dim = _dimension("all_to_all", x, axis, dim)

    def start() -> _Finish:
        mine = torch.stack(_staged(x, axis).chunk(axis.size, dim))
        theirs = torch.empty_like(mine)
        work = dist.all_to_all_single(theirs, mine, group=axis.group, async_op=True)
        return _after(work, axis, lambda: torch.cat(theirs.unbind(0), dim).to(x.device))

    return _run("all_to_all", x, axis, x.nbytes, start)


def _peer(axis: Axis, position: int, name: str) -> int:
    if not 0 <= position < axis.size:
        known = f"the axis {axis.name} has positions 0 to {axis.size - 1}"
        raise ValueError(f"{name}={position}: {known}")
    return axis.ranks[position]


def _message(op: str, x: Tensor, axis: Axis, position: int, name: str) -> Tensor:
    """Send or receive; the tensor that was really sent or written."""
    _check(x, axis, op)
    peer = _peer(axis, position, name)
    if position == axis.rank:
        raise ValueError(f"{name}={position}: a rank sends no message to itself")
    with collective(Call(op, axis.name, axis.ranks, x.nbytes, peer)):
        buffer = _staged(x, axis)
        (dist.send if op == "send" else dist.recv)(buffer, peer, axis.group)
    return buffer


def send(x: Tensor, axis: Axis, to: int) -> None:
    """Send `x` to the rank at position `to` along the axis, and wait until it has gone."""
    _message("send", x, axis, to, "to")


def recv(x: Tensor, axis: Axis, source: int) -> Tensor:
    """Receive into `x` what the rank at position `source` sends; returns `x`.

    `x` has the shape and dtype of what was sent. This one does write into its argument.
    """
    _into(x, _message("recv", x, axis, source, "source"))
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
    operations, started = [], []
    for op, x, position, of_phase in messages:
        peer, buffer = _peer(axis, position, "position"), _staged(x, axis)
        call = Call(op, axis.name, axis.ranks, x.nbytes, peer)
        with phase(of_phase), collective(call, later=True) as record:
            way = dist.isend if op == "send" else dist.irecv
            operations.append(dist.P2POp(way, buffer, peer, axis.group))
        started.append((call, record, x, buffer))
    with waiting(Call("exchange", axis.name, axis.ranks, 0)):
        works = dist.batch_isend_irecv(operations)  # NCCL's is one for all

    def finish(work: Any, call: Call, record: Any, x: Tensor, buffer: Tensor) -> Tensor:
        with waiting(call, record):
            work.wait()
        return _into(x, buffer)

    each = zip(works if len(works) == len(started) else works * len(started), started, strict=True)
    return [Handle(functools.partial(finish, work, *one), work.is_completed) for work, one in each]


def barrier(axis: Axis) -> None:
    """Wait until every rank of the axis has come here."""
    if not isinstance(axis, Axis):
        raise TypeError(f"barrier takes an axis such as mesh.tp, not {type(axis).__name__}")
    if axis.size > 1:
        with collective(Call("barrier", axis.name, axis.ranks, 0)):
            dist.barrier(axis.group)
