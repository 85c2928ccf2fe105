"""Whose squares make the gradient's norm: a shard is one rank's alone, a replica is everybody's."""

from __future__ import annotations

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    PAPER,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)


def norm_squares(tp: int = 2) -> Picture:
    """The squared gradient of each rank, in two parts, and which of them go into the sum."""
    if not 2 <= tp <= 4:
        raise ValueError(f"tp={tp}: norm_squares draws 2 to 4 ranks")
    left, wide = 190, {2: 260, 3: 200, 4: 155}[tp]
    step = wide + 20
    with canvas(900, 365) as axes:
        words(axes, 20, 28, "Squares of the gradient, counted once", align="left", bold=True)
        words(axes, 20, 105, "parameters cut", align="left", size=SMALL)
        words(axes, 20, 127, "over the ranks", align="left", size=SMALL)
        words(axes, 20, 195, "parameters whole", align="left", size=SMALL)
        words(axes, 20, 217, "on every rank", align="left", size=SMALL)
        for rank in range(tp):
            x = left + step * rank
            words(axes, x + wide / 2, 60, f"rank {rank}", size=SMALL)
            patch(axes, x, 78, wide, 76, indexed("S", rank), colour=rank_colour(rank))
            if rank == 0:
                patch(axes, x, 168, wide, 76, "R", colour=EVERY_RANK)
            else:
                patch(axes, x, 168, wide, 76, colour=PAPER)
                words(axes, x + wide / 2, 195, "R again:")
                words(axes, x + wide / 2, 217, "left out")
            arrow(axes, (x + wide / 2, 248), (x + wide / 2, 290))
        total = " + ".join([*(indexed("S", rank) for rank in range(tp)), "R"])
        middle = left + (step * (tp - 1) + wide) / 2
        patch(axes, left, 294, step * (tp - 1) + wide, 52, colour=EVERY_RANK)
        words(axes, middle, 320, f"all-reduce:  norm² = {total}", on=EVERY_RANK)
        return Picture(
            axes,
            f"The squared gradient on {tp} ranks. Every rank adds the squares of its own shards, "
            f"S_0 to S_{tp - 1}. The squares R of what is whole on every rank are counted on rank "
            "0 and left out on the others. One all-reduce adds it all: the norm squared is "
            f"{' + '.join(f'S_{rank}' for rank in range(tp))} + R.",
        )
