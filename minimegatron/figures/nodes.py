"""An all-reduce over machines in three steps: inside a node, across the nodes, inside again.

Jia et al., arXiv:1807.11205. Drawn as the ring is: a number in a piece says how many ranks' values
are added up in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    INK,
    PAPER,
    SMALL,
    arrow,
    canvas,
    patch,
    rank_colour,
    words,
)

NODES, SHARE = 2, 2  # nodes, and ranks in each
PIECE, BETWEEN, LEFT, TOP = 40, 62, 120, 96  # pixels: a piece, and the gap between two nodes
STEPS = {"start": "", "reduce-scatter": "inside", "all-reduce": "across", "all-gather": "inside"}


def hierarchical_all_reduce(sent: Mapping[str, float] | None = None) -> Picture:
    """What every rank of two nodes of two holds after each step, from its own tensor to the sum.

    Args:
        sent: bytes that one rank sent, {"inside": ..., "across": ...}, as a ledger has them.
    """
    ranks = NODES * SHARE
    pitch = (880 - LEFT - PIECE * SHARE) / (len(STEPS) - 1)
    height = PIECE * ranks + BETWEEN * (NODES - 1)
    with canvas(900, TOP + height + (86 if sent else 56)) as axes:
        for node in range(NODES):
            top = TOP + node * (PIECE * SHARE + BETWEEN)
            words(axes, 8, top - 14, f"node {node}", align="left", size=SMALL, bold=True)
            for place in range(SHARE):
                rank, y = node * SHARE + place, top + PIECE * (place + 0.5)
                words(axes, 8, y, f"rank {rank}", align="left", size=SMALL)
        for step, (name, where) in enumerate(STEPS.items()):
            left = LEFT + pitch * step
            words(axes, left + PIECE * SHARE / 2, 24, name, size=SMALL, bold=step > 0)
            words(axes, left + PIECE * SHARE / 2, 48, where, size=SMALL)
            for rank in range(ranks):
                top = TOP + PIECE * rank + BETWEEN * (rank // SHARE)
                for piece in range(SHARE):
                    count = _count(step, piece, rank % SHARE)
                    full = EVERY_RANK if count == ranks else rank_colour(rank)
                    x, label = left + PIECE * piece, str(count) if count else ""
                    patch(axes, x, top, PIECE, PIECE, label, colour=full if count else PAPER)
            if step:
                arrow(axes, (left - pitch + PIECE * SHARE + 36, 36), (left - 36, 36))
        y = TOP + PIECE * SHARE + 24
        axes.plot((8, 892), (y, y), color=INK, linewidth=1, linestyle=(0, (6, 3)))
        below = TOP + height + 28
        key = (
            f"Number: how many ranks' values are added up; {ranks}: the sum. Dashed: the slow link."
        )
        words(axes, 450, below, key, size=SMALL)
        told = ""
        if sent:
            told = f"One rank sends {sent['inside']:,.0f} bytes inside its node, "
            told += f"{sent['across']:,.0f} across."
            words(axes, 450, below + 30, told, size=SMALL)
        return Picture(
            axes,
            f"An all-reduce on {NODES} nodes of {SHARE} ranks, in three steps. A reduce-scatter "
            f"inside each node leaves every rank one of {SHARE} pieces, added up over its node. An "
            "all-reduce across the nodes adds these up: ranks in the same place of every node hold "
            "the same piece of the sum. An all-gather inside gives every rank all pieces."
            + (f" {told}" if told else ""),
        )


def _count(step: int, piece: int, place: int) -> int:
    """How many ranks' values a piece has in it; 0 where the rank does not hold the piece."""
    if step in (1, 2) and piece != place:
        return 0
    return (1, SHARE, NODES * SHARE, NODES * SHARE)[step]
