"""Pictures of the processes: a notebook's kernel with its ranks, and the mesh that numbers them.

Megatron-LM numbers its ranks the same way (megatron/core/parallel_state.py): neighbours in number
are neighbours along tp, whose messages are the most frequent.
"""

from __future__ import annotations

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import NORMAL, SMALL, arrow, canvas, patch, rank_colour, words


def notebook_and_ranks(ranks: int = 4) -> Picture:
    """The kernel that runs the cells, beside the processes that run a launched function."""
    if not 1 <= ranks <= 4:
        raise ValueError(f"this picture has room for 1 to 4 ranks, not {ranks}")
    with canvas(900, 390) as axes:
        middle, height = 205, 60
        words(axes, 135, 35, "this notebook's process", bold=True)
        patch(axes, 20, middle - 130, 230, 260)
        words(axes, 135, middle - 36, "the kernel", size=NORMAL)
        words(axes, 135, middle, "runs your cells,", size=SMALL)
        words(axes, 135, middle + 24, "holds your variables", size=SMALL)
        words(axes, 680, 35, f"{ranks} more processes: the ranks", bold=True)
        step = 260 / ranks
        for rank in range(ranks):
            centre = middle - 130 + step * (rank + 0.5)
            colour = rank_colour(rank)
            label = f"rank {rank}: its own memory, its own tensors"
            patch(axes, 500, centre - height / 2, 380, height - 6, label, colour=colour, size=SMALL)
        words(axes, 375, middle - 75, "fn and arguments", size=SMALL)
        arrow(axes, (260, middle - 50), (490, middle - 50))
        arrow(axes, (490, middle + 50), (260, middle + 50))
        words(axes, 375, middle + 75, "a list of results", size=SMALL)
        words(axes, 450, 365, "The ranks stay alive between cells and share nothing but messages.")
        return Picture(
            axes,
            f"On the left one process, the notebook's kernel; on the right {ranks} more, the "
            "ranks, each with its own memory. One arrow carries the function and its arguments to "
            "the ranks, another carries the list of results back.",
        )


def mesh(tp: int = 2, dp: int = 2) -> Picture:
    """The ranks as a grid: tp from left to right, dp downwards; tp varies fastest."""
    if not (1 <= tp <= 4 and 1 <= dp <= 3):
        raise ValueError(f"this picture has room for tp <= 4 and dp <= 3, not {tp} and {dp}")
    with canvas(900, 90 + 100 * dp) as axes:
        side, left = 190, 470 - 95 * tp
        arrow(axes, (left, 50), (left + side * tp, 50))
        words(axes, left - 15, 50, "tp", align="right", bold=True)
        arrow(axes, (left - 25, 75), (left - 25, 75 + 100 * dp))
        words(axes, left - 40, 75 + 50 * dp, "dp", align="right", bold=True)
        for rank in range(tp * dp):
            row, column = divmod(rank, tp)
            x, y, colour = left + side * column, 75 + 100 * row, rank_colour(rank)
            patch(axes, x, y, side - 10, 90, colour=colour)
            words(axes, x + side / 2 - 5, y + 28, f"rank {rank}", bold=True, on=colour)
            place = f"tp.rank {column}, dp.rank {row}"
            words(axes, x + side / 2 - 5, y + 60, place, size=SMALL, on=colour)
        rows = "; ".join(
            f"row {row} holds the ranks {', '.join(map(str, range(row * tp, row * tp + tp)))}"
            for row in range(dp)
        )
        return Picture(
            axes,
            f"A grid of {tp * dp} ranks, tp from left to right and dp downwards: {rows}. "
            "Numbers count along tp first.",
        )
