"""A board that all ranks write on and the parent reads: where each rank is, what it has called.

The parent must be able to say where a rank waits when that rank can no longer answer: it hangs in
a collective, computes for ever, or is dead. So every rank keeps its last collectives, its last
known line and a progress counter in a file mapped into memory, which outlives it.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<QQB")  # progress, collectives entered, inside one now
_LINE = 256  # bytes for the last known line
_ENTRY = 256  # bytes for one collective
KEPT = 1024  # collectives remembered per rank
_FIRST = 1024  # where the entries begin
SIZE = _FIRST + KEPT * _ENTRY


@dataclass(frozen=True)
class Call:
    """One collective or message of a rank: its number, and the global ranks that take part."""

    number: int
    op: str
    axis: str
    line: str
    ranks: tuple[int, ...]
    peer: int | None


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
            file.truncate(world_size * SIZE)
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
        self, op: str, axis: str, line: str, ranks: tuple[int, ...], peer: int | None
    ) -> None:
        """The rank begins a collective."""
        entry = "|".join((op, axis, line, ",".join(map(str, ranks)), "" if peer is None else f"{peer}"))
        self._put(_FIRST + (self._entered % KEPT) * _ENTRY, _ENTRY, entry)
        self._progress, self._entered, self._inside = self._progress + 1, self._entered + 1, 1
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

    def calls(self) -> list[Call]:
        """The collectives of this call, oldest first; the last KEPT of them."""
        entered, calls = self.entered, []
        for number in range(max(0, entered - KEPT), entered):
            text = self._text(_FIRST + (number % KEPT) * _ENTRY, _ENTRY)
            op, axis, line, ranks, peer = (text.split("|") + [""] * 4)[:5]
            members = tuple(int(r) for r in ranks.split(",") if r)
            calls.append(Call(number, op, axis, line, members, int(peer) if peer else None))
        return calls

    def settle(self, seconds: float) -> bool:
        """Wait until the rank has stood still in a collective for `seconds`; False if it moved."""
        before = self.progress
        time.sleep(seconds)
        return self.inside and self.progress == before
