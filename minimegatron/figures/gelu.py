"""GELU of a sum is not the sum of the GELUs, drawn on the curve of GELU.

arXiv:1909.08053, section 3: why the first matrix of the MLP cannot be cut by rows without adding
the ranks' sheets before GELU. Two ranks hold one number each of their sheets, a and b.
"""

from __future__ import annotations

import math

import ipywidgets

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    INK,
    PAPER,
    SMALL,
    canvas,
    patch,
    rank_colour,
    words,
)
from minimegatron.figures.widgets import PictureExplorer

REACH = 8  # of the horizontal axis, each side of zero
LEFT, TOP, WIDTH, HEIGHT = 50, 20, 440, 270  # of the frame, in pixels
HIGHEST, LOWEST = 8.5, -0.8  # of the vertical axis
MARKERS = ("o", "s", "D")  # rank 0, rank 1, their sum


def gelu_of_sum(a: float = 4.0, b: float = -4.0) -> Picture:
    """The curve of GELU (tanh form) with a, b and a + b on it, and how far the two sums differ.

    Raises ValueError for a sum outside the picture, beyond +-8.
    """
    if max(abs(a), abs(b), abs(a + b)) > REACH:
        raise ValueError(f"this picture reaches from -{REACH} to {REACH}: {a} and {b} do not fit")
    sum_of, of_sum = _gelu(a) + _gelu(b), _gelu(a + b)
    with canvas(900, 330) as axes:
        patch(axes, LEFT, TOP, WIDTH, HEIGHT, colour=PAPER)
        steps = [REACH * (i / 100 - 1) for i in range(201)]
        axes.plot(*zip(*(_place(x) for x in steps), strict=True), color=INK, linewidth=2)
        for x in (-REACH, 0, REACH):
            words(axes, _place(x)[0], TOP + HEIGHT + 20, f"{x}", size=SMALL)
        for value in (0, REACH):
            words(axes, LEFT - 10, _height(value), f"{value}", size=SMALL, align="right")
        words(axes, LEFT + 20, TOP + 24, "GELU", align="left", bold=True)
        colours = (rank_colour(0), rank_colour(1), EVERY_RANK)
        lines = (
            f"rank 0: a = {_two(a)}, GELU(a) = {_two(_gelu(a))}",
            f"rank 1: b = {_two(b)}, GELU(b) = {_two(_gelu(b))}",
            f"GELU(a + b) = {_two(of_sum)}",
        )
        marks = zip((a, b, a + b), MARKERS, colours, lines, (50, 90, 185), strict=True)
        for point, marker, colour, line, row in marks:
            for place in (_place(point), (530, row)):
                axes.plot(*place, marker, color=colour, markeredgecolor=INK, markersize=10)
            words(axes, 552, row, line, align="left", size=SMALL)
        words(axes, 552, 145, f"GELU(a) + GELU(b) = {_two(sum_of)}", align="left", size=SMALL)
        off = f"off by {_two(abs(sum_of - of_sum))}"
        words(axes, 552, 240, off, align="left", bold=True)
        return Picture(
            axes,
            f"The curve of GELU: near zero on the left, the diagonal on the right. {lines[0]}; "
            f"{lines[1]}. GELU(a) + GELU(b) = {_two(sum_of)}, but {lines[2]}: {off}.",
        )


def explore_gelu() -> PictureExplorer:
    """Sliders for a and b above the picture: where are the two sums equal?"""
    reach = {"min": -4.0, "max": 4.0, "step": 0.5}
    return PictureExplorer(
        gelu_of_sum,
        a=ipywidgets.FloatSlider(value=4.0, description="a", **reach),
        b=ipywidgets.FloatSlider(value=-4.0, description="b", **reach),
    )


def _gelu(x: float) -> float:
    """The tanh form of GELU, as GPT-2 has it."""
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _height(y: float) -> float:
    return TOP + HEIGHT * (HIGHEST - y) / (HIGHEST - LOWEST)


def _place(x: float) -> tuple[float, float]:
    """Where the point (x, GELU(x)) lies in the picture."""
    return LEFT + WIDTH * (x + REACH) / (2 * REACH), _height(_gelu(x))


def _two(x: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(x, 2) + 0.0:.2f}"
