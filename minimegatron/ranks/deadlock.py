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
    return RankTimeout("\n".join(lines), min(waiting, default=0), "\n".join(lines[2:]))


def first_difference(boards: Sequence[Board], returned: set[int], behind: bool = True) -> list[str]:
    """The first collective in which ranks of one group differ, by name or bytes; [] if none.

    With `behind`, a rank that has not called it differs; without, it may still be on its way.
    """
    if any(board.entered > KEPT for board in boards):
        return []  # the beginning is forgotten
    calls = [[c for c in board.calls() if c.op not in _MESSAGES] for board in boards]
    groups = {call.ranks: call.axis for rank_calls in calls for call in rank_calls}
    for ranks, axis in groups.items():
        mine = {r: [c for c in calls[r] if c.ranks == ranks] for r in ranks}
        for number in range(max(map(len, mine.values()))):
            at = {r: mine[r][number] if number < len(mine[r]) else None for r in ranks}
            kinds = {(call.op, call.size) if call else None for call in at.values()}
            if len(kinds if behind else kinds - {None}) <= 1:
                continue
            place = "the whole world" if axis == "world" else axis
            lines = [f"the ranks' collectives on {place} first differ at number {number + 1}:"]
            for r, last in at.items():
                ended = "returned without one" if r in returned else "has not called it"
                what = f"{last.op} of {last.size} bytes, {last.line}" if last else ended
                lines.append(f"  rank {r}: {what}")
            return lines
    return []
