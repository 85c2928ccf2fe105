"""Who waits where, when ranks disagree.

A collective ends when every rank of its axis has called it. One rank that skips it, or calls
another, leaves the rest waiting for ever (pitfalls 24 and 25). The explainer reads the ranks' board
and says where each one is, and at which collective their sequences first differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from minimegatron.ranks.board import KEPT, Board, Call
from minimegatron.ranks.errors import RankTimeout

_MESSAGES = ("send", "recv")


def name(call: Call) -> str:
    """ "all_reduce on tp", "send to rank 3 on pp"."""
    where = "the whole world" if call.axis == "world" else call.axis
    if call.peer is not None:
        towards = "from" if call.op == "recv" else "to"
        peer = "any rank" if call.peer < 0 else f"rank {call.peer}"
        return f"{call.op} {towards} {peer} on {where}"
    return f"{call.op} on {where}"


def explain(boards: Sequence[Board], returned: set[int], timeout: float) -> RankTimeout:
    """The error that tells, rank by rank, what it waits for, and what went apart first."""
    lines = [f"no rank made progress within the timeout of {timeout:g} s", ""]
    for rank, board in enumerate(boards):
        call = board.now
        if rank in returned:
            lines.append(f"  rank {rank} has returned")
        elif call is not None:
            lines.append(f"  rank {rank} waits in {name(call)}, {call.line}")
        else:
            lines.append(f"  rank {rank} is in no collective, {board.line}")
    waiting = [r for r, b in enumerate(boards) if r not in returned]
    difference = first_difference(boards, returned)
    if difference:
        lines += ["", *difference]
    text = "\n".join(lines)
    return RankTimeout(text, min(waiting, default=0), "\n".join(lines[2:]))


def first_difference(boards: Sequence[Board], returned: set[int]) -> list[str]:
    """The first collective that two ranks of one group do not share, in words; [] if none."""
    calls = [board.calls() for board in boards]
    groups: dict[tuple[int, ...], str] = {}
    for rank_calls in calls:
        for call in rank_calls:
            if call.op not in _MESSAGES:
                groups.setdefault(call.ranks, call.axis)
    if any(board.entered > KEPT for board in boards):
        return []  # the beginning is forgotten
    for ranks, axis in groups.items():
        mine = {
            r: [c for c in calls[r] if c.ranks == ranks and c.op not in _MESSAGES] for r in ranks
        }
        for number in range(max(map(len, mine.values()))):
            at = {r: mine[r][number] if number < len(mine[r]) else None for r in ranks}
            if len({call.op if call else None for call in at.values()}) > 1:
                place = "the whole world" if axis == "world" else axis
                lines = [f"the ranks' collectives on {place} first differ at number {number + 1}:"]
                for r, last in at.items():
                    ended = "returned without one" if r in returned else "has not called it"
                    lines.append(f"  rank {r}: " + (f"{last.op}, {last.line}" if last else ended))
                return lines
    return []
