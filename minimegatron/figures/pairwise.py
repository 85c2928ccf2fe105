"""An all-reduce by pairwise exchange (recursive doubling), round by round.

In round k every rank swaps all it has with the rank whose number differs in bit k, and adds what
arrives. Each round doubles how many ranks' values are in the sum: log2(n) rounds instead of the
ring's 2(n-1) steps, at the price of sending the whole tensor in each. `mm.all_reduce` uses it for
small tensors on CPUs. Source: Thakur, Rabenseifner and Gropp, "Optimization of Collective
Communication Operations in MPICH", 2005, section 4.5.
"""

from __future__ import annotations

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)

TOP, ROW, HEIGHT = 62, 58, 40  # of the first row, from row to row, of a box, in pixels


def pairwise_all_reduce(tp: int = 4) -> Picture:
    """Whose values are in every rank's sum, at the start and after each round."""
    if tp not in (2, 4):
        raise ValueError(f"this picture has room for 2 or 4 ranks, and tp is {tp}")
    states = rounds(tp)
    width = 190  # of a box
    pitch = (900 - 110 - width) / (len(states) - 1)
    with canvas(900, TOP + ROW * tp + 24) as axes:
        for rank in range(tp):
            y = TOP + ROW * rank + HEIGHT / 2
            words(axes, 8, y, f"rank {rank}", align="left", size=SMALL)
        for number, sums in enumerate(states):
            left = 90 + pitch * number
            title = f"round {number}" if number else "start"
            words(axes, left + width / 2, 24, title, size=SMALL)
            for rank, members in enumerate(sums):
                colour = EVERY_RANK if len(members) == tp else rank_colour(rank)
                label = " + ".join(indexed("x", member) for member in members)
                patch(axes, left, TOP + ROW * rank, width, HEIGHT, label, colour=colour)
                if number + 1 < len(states):
                    partner = rank ^ 2**number
                    start = (left + width + 6, TOP + ROW * rank + HEIGHT / 2)
                    end = (left + pitch - 6, TOP + ROW * partner + HEIGHT / 2)
                    arrow(axes, start, end)
        swaps = [f"in round {k + 1} ranks {2**k} apart swap" for k in range(len(states) - 1)]
        return Picture(
            axes,
            f"Pairwise exchange on {tp} ranks. Every rank r starts with its own x_r; "
            f"{', '.join(swaps)}, and both add what arrives. Each round doubles the "
            f"number of values in the sum, until every rank holds x_0 to x_{tp - 1}.",
        )


def rounds(tp: int) -> list[list[list[int]]]:
    """[round][rank] -> the ranks whose values are added up there, from the start on."""
    states = [[[rank] for rank in range(tp)]]
    step = 1
    while step < tp:
        states.append([sorted(sums + states[-1][r ^ step]) for r, sums in enumerate(states[-1])])
        step *= 2
    return states
