"""This way over that way: what a change is worth, measured, beside what a model expects."""

from __future__ import annotations

import math
from collections.abc import Mapping

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, words

LEFT, RIGHT, TOP, ROW = 400, 820, 92, 40  # pixels
MARKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def ratios(title: str, rows: Mapping[str, Mapping[str, float]]) -> Picture:
    """One row a change: a disc at the median of the rounds' ratios, a line over the middle half of
    them, and an empty diamond where the model expects it. Left of 1 it is faster.

    Args:
        rows: what was changed -> "lower" (quartile), "median", "upper", "expected".

    Raises ValueError for no row or a ratio not above zero.
    """
    values = [value for row in rows.values() for value in row.values()]
    if not values or min(values) <= 0:
        raise ValueError("ratios draws one row or more, of numbers above zero")
    low = max((mark for mark in MARKS if mark <= min(values)), default=min(values))
    high = min((mark for mark in MARKS if mark >= max(1.01, *values)), default=max(values))

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(value / low) / math.log(high / low)

    bottom = TOP + ROW * len(rows)
    with canvas(900, bottom + 80) as axes:
        words(axes, 20, 26, title, align="left", bold=True)
        words(axes, across(1) - 10, TOP - 26, "faster", align="right", size=SMALL)
        words(axes, across(1) + 10, TOP - 26, "slower", align="left", size=SMALL)
        for mark in (mark for mark in MARKS if low <= mark <= high):
            x, width = across(mark), 1.8 if mark == 1 else 0.4
            axes.plot((x, x), (TOP - 12, bottom), color=INK, linewidth=width)
            words(axes, x, bottom + 18, f"{mark:g}", size=SMALL)
        for number, (name, row) in enumerate(rows.items()):
            y = TOP + ROW * (number + 0.5)
            words(axes, LEFT - 20, y, name, align="right", size=SMALL)
            ends = across(row["lower"]), across(row["upper"])
            axes.plot(ends, (y, y), color=INK, linewidth=2.5, solid_capstyle="butt")
            axes.plot([across(row["median"])], [y], "o", color=INK, markersize=10)
            look = {"markerfacecolor": PAPER, "markeredgecolor": INK, "markersize": 10}
            axes.plot([across(row["expected"])], [y], "D", **look)  # type: ignore[arg-type]
        axes.plot([60], [bottom + 54], "o", color=INK, markersize=10)
        words(axes, 76, bottom + 54, "measured: median and middle half", align="left", size=SMALL)
        axes.plot([400], [bottom + 54], "D", **look)  # type: ignore[arg-type]
        words(axes, 416, bottom + 54, "expected by the model", align="left", size=SMALL)
        told = "; ".join(
            f"{name}: {row['median']:.2g}, expected {row['expected']:.2g}"
            for name, row in rows.items()
        )
        return Picture(axes, f"{title}, as a ratio of times, below 1 is faster. {told}.")
