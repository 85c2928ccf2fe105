"""A board that all ranks write on and the parent reads: where each rank is, what it has called.

The parent must be able to say where a rank waits when that rank can no longer answer: it hangs in
a collective, computes for ever, or is dead. So every rank keeps its last collectives, its last
known line and a progress counter in a file mapped into memory, which outlives it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

KEPT = 1024  # collectives remembered per rank
_TEXT = "S256"  # bytes of a line or of a collective; what is longer is cut
_PART = np.dtype(
    [("progress", "u8"), ("entered", "u8"), ("inside", "?"), ("line", _TEXT), ("now", _TEXT),
     ("calls", _TEXT, KEPT)]
)  # fmt: skip


class Call(NamedTuple):
    """One collective among the global `ranks` on a logical tensor of `size` bytes; or a message,
    with the global rank `peer` at its other end (-1: any). `line` is known once it is on a board.
    """

    op: str
    axis: str
    ranks: Sequence[int]
    size: int
    peer: int | None = None
    line: str = ""


class Board:
    """The part of one rank. `rank` writes (`enter`, `leave`, `at`), the parent reads."""

    def __init__(self, path: Path, rank: int) -> None:
        table = np.asarray(np.memmap(path, _PART, "r+"))
        # A view of each field, made once: numpy takes its time to find one.
        self._part = {name: table[name][rank : rank + 1] for name in table.dtype.names or ()}

    @staticmethod
    def create(path: Path, world_size: int) -> "list[Board]":
        """Make the file for `world_size` ranks and open each rank's part."""
        # Taken now: a full disk is an error here, and a killed rank later.
        path.write_bytes(bytes(world_size * _PART.itemsize))
        return [Board(path, rank) for rank in range(world_size)]

    def _moved(self, inside: bool) -> None:
        self._part["progress"][0] += 1
        self._part["inside"][0] = inside

    def restart(self) -> None:
        """A new call begins."""
        self._part["entered"][0] = 0
        self.at("")
        self._moved(inside=False)

    def enter(self, call: Call, line: str, new: bool = True) -> None:
        """The rank begins a collective in `line`; or, not `new`, it waits for one begun before."""
        op, axis, ranks, size, peer, _ = call
        members = ",".join(map(str, ranks))
        entry = f"{op}|{axis}|{size}|{'' if peer is None else peer}|{line}|{members}".encode()
        self._part["now"][0] = entry
        if new:
            self._part["calls"][0, self.entered % KEPT] = entry
            self._part["entered"][0] += 1
        self._moved(inside=True)

    def leave(self) -> None:
        """The rank has finished it."""
        self._moved(inside=False)

    def at(self, line: str) -> None:
        """The last known line of the rank, which is not in a collective."""
        self._part["line"][0] = line.encode()

    line = property(lambda self: _text(self._part["line"][0]), doc="Last known line, or nothing.")
    progress = property(lambda self: int(self._part["progress"][0]), doc="Grows as it moves.")
    entered = property(lambda self: int(self._part["entered"][0]), doc="Collectives of this call.")
    inside = property(lambda self: bool(self._part["inside"][0]), doc="Whether it is in one now.")

    @property
    def now(self) -> Call | None:
        """The collective the rank is in; None while it computes."""
        return _call(self._part["now"][0]) if self.inside else None

    def calls(self) -> list[Call]:
        """The collectives of this call, oldest first; the last KEPT of them."""
        numbers = range(max(0, self.entered - KEPT), self.entered)
        return [_call(self._part["calls"][0, n % KEPT]) for n in numbers]


def _text(entry: bytes) -> str:
    return bytes(entry).decode(errors="replace")


def _call(entry: bytes) -> Call:
    op, axis, size, peer, line, ranks = _text(entry).split("|")
    members = tuple(int(r) for r in ranks.split(",") if r)
    return Call(op, axis, members, int(size), int(peer) if peer else None, line)
