"""What was sent: every collective of a rank, with its axis, phase, bytes and line.

The paper counts its communication in words (section 3: "two all-reduces in the forward path and
two in the backward path" of a layer). Here the count is measured: each collective of the package,
and each direct call of torch.distributed in a cell, passes through `collective` below. Bytes are
those of the logical tensor, as nccl-tests counts; wire bytes are what one rank of a ring sends.
Times are seconds of the machine's clock, which all its ranks share; the host's, so that on a GPU
they say when work was asked for, not when it ran.
"""

import contextlib
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist

from minimegatron.ranks import place
from minimegatron.ranks.board import Board, Call

PHASES = ("forward", "backward", "recompute", "optimizer", "other")
_Wanted = str | None  # None: any


def _check_phase(name: str) -> None:
    if name not in PHASES:
        raise ValueError(f"phase {name!r} is not one of {', '.join(PHASES)}")


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
        self, op: _Wanted = None, axis: _Wanted = None, phase: _Wanted = None
    ) -> list[Record]:
        """The records with this op, on this axis, in this phase; None takes any."""
        if phase is not None:
            _check_phase(phase)
        wanted = {"op": op, "axis": axis, "phase": phase}
        checks = [(key, value) for key, value in wanted.items() if value is not None]
        return [r for r in self.records if all(getattr(r, key) == value for key, value in checks)]

    def count(self, op: _Wanted = None, axis: _Wanted = None, phase: _Wanted = None) -> int:
        """How many collectives."""
        return len(self.select(op, axis, phase))

    def bytes(self, op: _Wanted = None, axis: _Wanted = None, phase: _Wanted = None) -> int:
        """Bytes of the logical tensors, as nccl-tests counts them."""
        return sum(r.bytes for r in self.select(op, axis, phase))

    def wire_bytes(self, op: _Wanted = None, axis: _Wanted = None, phase: _Wanted = None) -> float:
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
            rows.setdefault((r.op, r.axis, r.phase), []).append(r.bytes)
        lines = [
            f"{len(sizes):5d} x {op:15s} on {axis:6s} {phase:10s} {sum(sizes):12,d} bytes"
            for (op, axis, phase), sizes in rows.items()
        ]
        return "\n".join(lines) or "nothing was sent"


class Trace:
    """What one process remembers about its collectives: the open ledgers and the shared board."""

    board: Board | None = None

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget the last call."""
        self.ledgers: list[Ledger] = []
        self.phase: str | None = None
        self.depth = 0
        self.record: Record | None = None  # of the collective that is being started
        # For each group a checksum of its collectives' names, in order; and the messages on their
        # way to each rank. When a call ends well all ranks agree on the first, and have taken in
        # what was sent: the sum of the second over the ranks is 0.
        self.sequences: dict[tuple[int, ...], int] = {}
        self.messages: Counter[int] = Counter()


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
    _check_phase(name)
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
def collective(call: Call, later: bool = False) -> Iterator[Record | None]:
    """Around every collective: records it once (what it calls inside is not counted again).

    `later`: it is only started here, and `waiting` takes the record that this yields, None where no
    ledger is open.
    """
    if TRACE.depth:
        yield None
        return
    record = None
    line = place.here() if TRACE.board or TRACE.ledgers else ""
    if call.op == "recv":
        TRACE.messages[dist.get_rank()] -= 1
    elif call.peer is not None:
        TRACE.messages[call.peer] += 1
    else:
        ranks = tuple(call.ranks)
        TRACE.sequences[ranks] = zlib.crc32(call.op.encode(), TRACE.sequences.get(ranks, 0))
    if TRACE.ledgers and call.op != "recv":  # a message is counted once, at its sender
        op, axis, size, n = call.op, call.axis, call.size, len(call.ranks)
        wire, posted = ring_bytes(op, size, n), time.perf_counter()
        waited = None if later else posted
        record = Record(op, axis, n, current_phase(), size, wire, line, posted, waited)
        for log in TRACE.ledgers:
            log.records.append(record)
    TRACE.record = record
    with _inside(call, line, None if later else record, new=True):
        yield record
    TRACE.record = None


@contextlib.contextmanager
def waiting(call: Call, record: Record | None = None) -> Iterator[None]:
    """Around the wait for a collective that was started, and recorded, before."""
    if record:
        record.waited = time.perf_counter()
    with _inside(call, place.here() if TRACE.board else "", record, new=False):
        yield


@contextlib.contextmanager
def _inside(call: Call, line: str, record: Record | None, new: bool) -> Iterator[None]:
    TRACE.depth += 1
    if TRACE.board is not None:
        TRACE.board.enter(call, line, new)
    try:
        yield
        if record:
            record.arrived()
    finally:
        TRACE.depth -= 1
        if TRACE.board is not None:
            TRACE.board.leave()
