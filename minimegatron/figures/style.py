"""The visual language of the course: one colour per rank, one hatch per kind of work.

Every picture speaks it, so that what was learned from one picture holds in the next: rank 2 is
always the same green, a backward pass is always hatched the same way, a neutral patch is always
something that every rank holds. Colour never carries a meaning alone: each patch has a label, and
the eight colours differ in lightness, so that a grey print and a colour-blind reader lose nothing.

Pictures are drawn in CSS pixels, y downwards, as on a page: 100 wide is 100 wide on the screen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

RANK_COLOURS = (
    "#14507F", "#DB6A22", "#67BFB0", "#F7E17A", "#4A1A4F", "#7A6A1A", "#DD82B0", "#B4C7EA",
)  # fmt: skip
EVERY_RANK = "#E6E6E6"  # held by all ranks alike, or by no rank in particular
PAPER = "#FFFFFF"
INK = "#1A1A1A"

HATCHES = {"F": "", "B": "///", "I": "\\\\\\", "W": "xx"}
"""Kinds of work: F forward, B whole backward, I its input gradient, W its weight gradient."""

POINTS_PER_PIXEL = 0.75  # CSS: 96 pixels are one inch, 72 points
PIXELS_PER_INCH = 96
SMALL, NORMAL, LARGE = 12.5, 14.0, 18.0  # points; nothing is smaller, for the last row of a hall

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "hatch.linewidth": 0.8,
    "text.color": INK,
    "text.usetex": False,
    "path.sketch": None,
}


def rank_colour(rank: int) -> str:
    """The colour of a rank; from rank 8 on the colours repeat, and labels tell them apart."""
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


def luminance(colour: str) -> float:
    """Relative luminance of "#RRGGBB" as WCAG 2 defines it, from 0 (black) to 1 (white)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: str) -> str:
    """The ink, dark or white, that is easier to read on this colour."""
    return INK if luminance(colour) > 0.2 else PAPER


def indexed(name: str, rank: int) -> str:
    """`name` with the rank as a subscript. (matplotlib's own formulas take ten times as long.)"""
    return name + "".join(chr(ord("₀") + int(digit)) for digit in str(rank))


@contextmanager
def canvas(width: int, height: int) -> Iterator[Axes]:
    """An empty drawing area of `width` x `height` CSS pixels, origin at the top left.

    The figure is made without pyplot: it belongs to nobody's list of open figures and the
    reader's own plots and rcParams stay as they are. Finish the Picture inside the context.
    """
    with style.context(["default", _RC]):
        figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        yield axes


def patch(
    axes: Axes,
    left: float,
    top: float,
    width: float,
    height: float,
    label: str = "",
    *,
    colour: str = EVERY_RANK,
    hatch: str = "",
    size: float = NORMAL,
) -> None:
    """A labelled rectangle. On a hatched patch the label stands on a small plain ground."""
    ink = ink_on(colour)
    if hatch:  # apart from the outline, because matplotlib gives hatch and edge one colour
        axes.add_patch(
            Rectangle((left, top), width, height, fc=colour, ec=ink, linewidth=0, hatch=hatch)
        )
    ground_colour = "none" if hatch else colour
    axes.add_patch(Rectangle((left, top), width, height, fc=ground_colour, ec=INK))
    ground = {"facecolor": colour, "edgecolor": "none", "pad": 4} if hatch else None
    axes.text(
        left + width / 2, top + height / 2, label, color=ink, size=size, ha="center", va="center",
        bbox=ground,
    )  # fmt: skip


def words(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = NORMAL,
    align: str = "center",
    bold: bool = False,
    on: str = PAPER,
) -> None:
    """Words centred on the height y; `align` says where x lies in them, `on` what they stand on."""
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, size=size, ha=align, va="center", weight=weight, color=ink_on(on))


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    dashed: bool = False,
) -> None:
    """An arrow; dashed for what flows in the backward pass."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=16, color=INK, linewidth=1.8,
            linestyle=(0, (3, 2)) if dashed else "-", shrinkA=0, shrinkB=0,
        )
    )  # fmt: skip
