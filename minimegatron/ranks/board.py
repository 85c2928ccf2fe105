"""A board that all ranks write on and the parent reads: where each rank is, what it has called.

The parent must be able to say where a rank waits when that rank can no longer answer: it hangs in
a collective, computes for ever, or is dead. So every rank keeps its last collectives, its last
known line and a progress counter in a file mapped into memory, which outlives it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<QQB")  # progress, collectives entered, inside one now
_LINE = 256  # bytes for the last known line, right behind the header
_ENTRY = 256  # bytes for one collective
KEPT = 1024  # collectives remembered per rank
_NOW = 512  # where the collective stands that the rank is in
_FIRST = 1024  # where all of them begin
SIZE = _FIRST + KEPT * _ENTRY


@dataclass(frozen=True)
class Call:
    """One collective or message of a rank, among the global `ranks`, of `size` bytes."""

    op: str
    axis: str
    line: str
    ranks: tuple[int, ...]
    peer: int | None
    size: int


class Board:
    """The part of one rank. `rank` writes (`enter`, `leave`, `at`), the parent reads."""

    def __init__(self, path: Path, rank: int) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._start = rank * SIZE
        self._progress, self._entered, self._inside = _HEADER.unpack_from(self._memory, self._start)

    @staticmethod
    def create(path: Path, world_size: int) -> list[Board]:
        """Make the file for `world_size` ranks and open each rank's part."""
        with path.open("wb") as file:
            # Taken now: a full disk is an error here, and a killed rank later.
            file.write(bytes(world_size * SIZE))
        return [Board(path, rank) for rank in range(world_size)]

    def _write_header(self) -> None:
        header = (self._progress, self._entered, self._inside)
        _HEADER.pack_into(self._memory, self._start, *header)

    def _text(self, offset: int, size: int) -> str:
        start = self._start + offset
        return self._memory[start : start + size].split(b"\0", 1)[0].decode(errors="replace")

    def _put(self, offset: int, size: int, text: str) -> None:
        data = text.encode()[: size - 1] + b"\0"
        self._memory[self._start + offset : self._start + offset + len(data)] = data

    def restart(self, line: str) -> None:
        """A new call begins."""
        self._progress, self._entered, self._inside = self._progress + 1, 0, 0
        self.at(line)
        self._write_header()

    def enter(
        self,
        op: str,
        axis: str,
        line: str,
        ranks: tuple[int, ...],
        peer: int | None,
        size: int,
        new: bool = True,
    ) -> None:
        """The rank begins a collective; or, not `new`, it waits for one begun before."""
        members = ",".join(map(str, ranks))
        entry = f"{op}|{axis}|{size}|{'' if peer is None else peer}|{line}|{members}"
        self._put(_NOW, _ENTRY, entry)
        if new:
            self._put(_FIRST + (self._entered % KEPT) * _ENTRY, _ENTRY, entry)
            self._entered += 1
        self._progress, self._inside = self._progress + 1, 1
        self._write_header()

    def leave(self) -> None:
        """The rank has finished it."""
        self._progress, self._inside = self._progress + 1, 0
        self._write_header()

    def at(self, line: str) -> None:
        """The last known line of the rank, which is not in a collective."""
        self._put(_HEADER.size, _LINE, line)

    @property
    def line(self) -> str:
        """The last known line; "" before the first."""
        return self._text(_HEADER.size, _LINE)

    @property
    def progress(self) -> int:
        """Grows whenever the rank begins or ends a collective."""
        return int(_HEADER.unpack_from(self._memory, self._start)[0])

    @property
    def entered(self) -> int:
        """How many collectives this call has begun."""
        return int(_HEADER.unpack_from(self._memory, self._start)[1])

    @property
    def inside(self) -> bool:
        """Whether the rank is in a collective now."""
        return bool(_HEADER.unpack_from(self._memory, self._start)[2])

    @property
    def now(self) -> Call | None:
        """The collective the rank is in; None while it computes."""
        return self._call(_NOW) if self.inside else None

    def calls(self) -> list[Call]:
        """The collectives of this call, oldest first; the last KEPT of them."""
        numbers = range(max(0, self.entered - KEPT), self.entered)
        return [self._call(_FIRST + (n % KEPT) * _ENTRY) for n in numbers]

    def _call(self, offset: int) -> Call:
        op, axis, size, peer, line, ranks = self._text(offset, _ENTRY).split("|")
        members = tuple(int(r) for r in ranks.split(",") if r)
        return Call(op, axis, line, members, int(peer) if peer else None, int(size))
