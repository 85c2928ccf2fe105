"""What was sent: every collective of a rank, with its axis, phase, bytes and line.

The paper counts its communication in words (section 3: "two all-reduces in the forward path and
two in the backward path" of a layer). Here the count is measured: each collective of the package,
and each direct call of torch.distributed in a cell, passes through `collective` below. Bytes are
those of the logical tensor, as nccl-tests counts; wire bytes are what one rank of a ring sends.
Times are seconds of the machine's clock, which all its ranks share; the host's, so that on a GPU
they say when work was asked for, not when it ran.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from minimegatron.ranks import place
from minimegatron.ranks.board import Board

PHASES = ("forward", "backward", "recompute", "optimizer", "other")


def ring_bytes(op: str, size: float, n: int) -> float:
    """Bytes one rank of a ring of `n` sends for a collective on a logical tensor of `size` bytes.

    all_reduce 2 (n-1)/n size; all_gather, reduce_scatter and all_to_all (n-1)/n size; broadcast,
    reduce and a message size; a barrier nothing. Source: NVIDIA nccl-tests, PERFORMANCE.md.
    """
    share = {"all_reduce": 2 * (n - 1) / n, "barrier": 0.0}
    share |= dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all"), (n - 1) / n)
    return share.get(op, 1.0) * size


@dataclass
class Record:
    """One collective as one rank saw it: `axis` is its name, `size` the ranks along it.

    `posted`: when it was started; `waited`: when the rank began to stand still for it, at once
    unless `async_op`; `done`: when its result was there. None until then, and not compared.
    """

    op: str
    axis: str
    size: int
    phase: str
    bytes: int
    wire_bytes: float
    line: str
    posted: float = field(default=0.0, compare=False, repr=False)
    waited: float | None = field(default=None, compare=False, repr=False)
    done: float | None = field(default=None, compare=False, repr=False)

    def arrived(self) -> None:
        """The result is there, unless that is known already."""
        self.done = self.done or time.perf_counter()


class Span(NamedTuple):
    """Work that `mm.span` named."""

    name: str
    phase: str
    begin: float
    end: float


@dataclass
class Ledger:
    """The records of one rank between `with mm.ledger() as log:` and the end of the block."""

    records: list[Record] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list, compare=False)

    def select(
        self, op: str | None = None, axis: str | None = None, phase: str | None = None
    ) -> list[Record]:
        """The records with this op, on this axis, in this phase; None takes any."""
        if phase is not None and phase not in PHASES:
            raise ValueError(f"phase {phase!r} is not one of {', '.join(PHASES)}")
        wanted = {"op": op, "axis": axis, "phase": phase}
        checks = [(key, value) for key, value in wanted.items() if value is not None]
        return [r for r in self.records if all(getattr(r, key) == value for key, value in checks)]

    def count(
        self, op: str | None = None, axis: str | None = None, phase: str | None = None
    ) -> int:
        """How many collectives."""
        return len(self.select(op, axis, phase))

    def bytes(
        self, op: str | None = None, axis: str | None = None, phase: str | None = None
    ) -> int:
        """Bytes of the logical tensors, as nccl-tests counts them."""
        return sum(r.bytes for r in self.select(op, axis, phase))

    def wire_bytes(
        self, op: str | None = None, axis: str | None = None, phase: str | None = None
    ) -> float:
        """Bytes a ring would send from this rank, whatever algorithm ran."""
        return sum(r.wire_bytes for r in self.select(op, axis, phase))

    def hidden(self, **which: str) -> float:
        """The share of the time with messages under way in which the rank did not stand waiting.

        0 where every message was waited for at once, or none was sent; 1 where each had come before
        it was waited for. A message that nobody has waited for does not count; `which` as above.
        """
        under_way = standing = reached = 0.0
        for r in sorted(self.select(**which), key=lambda r: r.posted):
            if r.waited is not None and r.done is not None:
                under_way += max(0.0, r.done - max(r.posted, reached))
                standing += max(0.0, r.done - max(r.waited, reached))
                reached = max(reached, r.done)
        return 1 - standing / under_way if under_way else 0.0

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        rows: dict[tuple[str, str, str], list[int]] = {}
        for r in self.records:
            row = rows.setdefault((r.op, r.axis, r.phase), [0, 0])
            row[0] += 1
            row[1] += r.bytes
        lines = [
            f"{n:5d} x {op:15s} on {axis:6s} {phase:10s} {size:12,d} bytes"
            for (op, axis, phase), (n, size) in rows.items()
        ]
        return "\n".join(lines or ["nothing was sent"])


class Trace:
    """What one process remembers about its collectives: the open ledgers and the shared board."""

    def __init__(self) -> None:
        self.ledgers: list[Ledger] = []
        self.phase: str | None = None
        self.depth = 0
        self.record: Record | None = None  # of the collective that is being started
        self.board: Board | None = None
        # Per group: how many collectives, and a checksum of their names in order.
        self.counts: dict[tuple[int, ...], tuple[int, int]] = {}
        self.sent: dict[int, int] = {}
        self.received = 0

    def restart(self) -> None:
        """Forget the last call."""
        self.ledgers.clear()
        self.phase, self.depth, self.received, self.record = None, 0, 0, None
        self.counts.clear()
        self.sent.clear()


TRACE = Trace()


def current_phase() -> str:
    """The phase of the code that runs now: set by `phase`, else read from autograd's own state."""
    if TRACE.phase is not None:
        return TRACE.phase
    return "forward" if torch._C._current_graph_task_id() == -1 else "backward"


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Name the phase of the collectives in this block: "optimizer", say.

    forward and backward are found without it; a forward that runs again inside backward is not
    (`context_fn` of torch's checkpoint takes `phase("recompute")`).
    """
    if name not in PHASES:
        raise ValueError(f"phase {name!r} is not one of {', '.join(PHASES)}")
    before, TRACE.phase = TRACE.phase, name
    try:
        yield
    finally:
        TRACE.phase = before


@contextlib.contextmanager
def ledger() -> Iterator[Ledger]:
    """Write down every collective of this rank in the block: `with mm.ledger() as log:`."""
    log = Ledger()
    TRACE.ledgers.append(log)
    try:
        yield log
    finally:
        TRACE.ledgers[:] = [other for other in TRACE.ledgers if other is not log]


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """`with mm.span("weight gradient"):` names work in every open ledger."""
    begin = time.perf_counter()
    yield
    named = Span(name, current_phase(), begin, time.perf_counter())
    for log in TRACE.ledgers:
        log.spans.append(named)


@contextlib.contextmanager
def collective(
    op: str, axis: str, ranks: list[int], size: int, *, peer: int | None = None, later: bool = False
) -> Iterator[Record | None]:
    """Around every collective: records it once (what it calls inside is not counted again).

    `ranks` are the global ranks that take part, `size` the bytes of the logical tensor, `peer` the
    global rank at the other end of a message. `later`: it is only started here, and `waiting` takes
    the record that this yields, None where no ledger is open.
    """
    if TRACE.depth:
        yield None
        return
    record = None
    line = place.here() if TRACE.board or TRACE.ledgers else ""
    if op == "recv":  # a message is counted once, at its sender
        TRACE.received += 1
    else:
        wire = ring_bytes(op, size, len(ranks))
        if TRACE.ledgers:
            posted = time.perf_counter()
            waited = None if later else posted
            record = Record(op, axis, len(ranks), current_phase(), size, wire, line, posted, waited)
            for log in TRACE.ledgers:
                log.records.append(record)
        if peer is not None:
            TRACE.sent[peer] = TRACE.sent.get(peer, 0) + 1
        else:
            n, checksum = TRACE.counts.get(tuple(ranks), (0, 0))
            TRACE.counts[tuple(ranks)] = (n + 1, zlib.crc32(op.encode(), checksum))
    TRACE.record = record
    with _inside(op, axis, line, ranks, peer, size, new=True):
        yield record
    TRACE.record = None
    if record and not later:
        record.arrived()


@contextlib.contextmanager
def waiting(
    op: str, axis: str, ranks: list[int], size: int, record: Record | None, peer: int | None = None
) -> Iterator[None]:
    """Around the wait for a collective that was started, and recorded, before."""
    line = place.here() if TRACE.board else ""
    if record:
        record.waited = time.perf_counter()
    with _inside(op, axis, line, ranks, peer, size, new=False):
        yield
    if record:
        record.arrived()


@contextlib.contextmanager
def _inside(
    op: str, axis: str, line: str, ranks: list[int], peer: int | None, size: int, new: bool
) -> Iterator[None]:
    TRACE.depth += 1
    if TRACE.board is not None:
        TRACE.board.enter(op, axis, line, tuple(ranks), peer, size, new)
    try:
        yield
    finally:
        TRACE.depth -= 1
        if TRACE.board is not None:
            TRACE.board.leave()
