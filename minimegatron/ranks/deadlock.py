"""Who waits where, when ranks disagree.

A collective ends when every rank of its axis has called it. One rank that skips it, or calls
another, leaves the rest waiting for ever (pitfalls 24 and 25). The explainer reads the ranks' board
and says where each one is, and at which collective their sequences first differ.
"""

import itertools
from collections.abc import Sequence

from minimegatron.ranks.board import KEPT, Board, Call
from minimegatron.ranks.errors import RankTimeout

_MESSAGES = ("send", "recv")


def name(call: Call) -> str:
    """ "all_reduce on tp", "send to rank 3 on pp"."""
    where = f"on {_where(call.axis)}"
    if call.peer is None:
        return f"{call.op} {where}"
    peer = "any rank" if call.peer < 0 else f"rank {call.peer}"
    return f"{call.op} {'from' if call.op == 'recv' else 'to'} {peer} {where}"


def _where(axis: str) -> str:
    return "the whole world" if axis == "world" else axis


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
    difference = first_difference(boards, returned)
    if difference:
        lines += ["", *difference]
    first = min(set(range(len(boards))) - returned, default=0)
    return RankTimeout("\n".join(lines), first, "\n".join(lines[2:]))


def first_difference(boards: Sequence[Board], returned: set[int], behind: bool = True) -> list[str]:
    """The first collective in which ranks of one group differ, by name or bytes; [] if none.

    With `behind`, a rank that has not called it differs; without, it may still be on its way.
    """
    if any(board.entered > KEPT for board in boards):
        return []  # the beginning is forgotten
    calls = [[c for c in board.calls() if c.op not in _MESSAGES] for board in boards]
    groups = {call.ranks: call.axis for rank_calls in calls for call in rank_calls}
    for ranks, axis in groups.items():
        mine = [[call for call in calls[r] if call.ranks == ranks] for r in ranks]
        for number, at in enumerate(itertools.zip_longest(*mine), 1):
            kinds = {call and (call.op, call.size) for call in at}
            if len(kinds if behind else kinds - {None}) <= 1:
                continue
            lines = [f"the ranks' collectives on {_where(axis)} first differ at number {number}:"]
            for r, call in zip(ranks, at, strict=True):
                ended = "returned without one" if r in returned else "has not called it"
                what = f"{call.op} of {call.size} bytes, {call.line}" if call else ended
                lines.append(f"  rank {r}: {what}")
            return lines
    return []
