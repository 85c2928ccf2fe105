"""The loss scale over the steps of a run, and the steps that an overflow made void.

The axis is logarithmic: a halving is one line down. Scales that coincide are drawn a little apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from minimegatron.figures.curves import DASHES
from minimegatron.figures.numbers import power
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, patch, words

LEFT, RIGHT, TOP, BOTTOM = 70, 700, 60, 320  # of the frame, in pixels
APART = 4  # pixels between lines that coincide


def loss_scales(
    title: str, histories: Mapping[str, Sequence[float]], overflows: Collection[int]
) -> Picture:
    """Stairs for one to four histories of equal length: label -> the scale in step 0, 1, 2, ...

    Args:
        overflows: the steps that overflowed, crosses along the bottom.
    """
    lengths = {len(scales) for scales in histories.values()}
    if not 1 <= len(histories) <= len(DASHES) or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError("loss_scales draws one to four histories of one length, two steps or more")
    steps = lengths.pop()
    exponents = {name: [math.log2(s) for s in scales] for name, scales in histories.items()}
    every = [exponent for values in exponents.values() for exponent in values]
    high, low = math.floor(max(every)) + 1, math.ceil(min(every)) - 2

    def across(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / steps

    def down(exponent: float) -> float:
        return TOP + (BOTTOM - TOP) * (high - exponent) / (high - low)

    with canvas(900, 380) as axes:
        words(axes, LEFT, 28, title, align="left", bold=True)
        patch(axes, LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, colour=PAPER)
        for exponent in range(high - 1, low, -max(1, (high - low) // 8)):
            words(axes, LEFT - 10, down(exponent), power(exponent), align="right", size=SMALL)
        words(axes, LEFT, BOTTOM + 24, "step 0", size=SMALL)
        words(axes, RIGHT, BOTTOM + 24, f"step {steps - 1}", align="right", size=SMALL)
        at = [across(step + 0.5) for step in sorted(overflows)]
        axes.plot(at, [BOTTOM - 12] * len(at), "x", color=INK, markersize=7, markeredgewidth=1.5)
        words(axes, (LEFT + RIGHT) / 2, BOTTOM + 24, "× the step overflowed", size=SMALL)
        ends = []
        for i, (name, values) in enumerate(exponents.items()):
            x = [across(step + side) for step in range(steps) for side in (0, 1)]
            y = [down(value) + APART * i for value in values for _ in (0, 1)]
            axes.plot(x, y, color=INK, linestyle=DASHES[i], linewidth=2)
            ends.append((y[-1], name))
        heights: list[float] = []
        for y_end, _ in sorted(ends):
            heights.append(max(y_end, heights[-1] + 22) if heights else y_end)
        up = max(0.0, heights[-1] - BOTTOM)  # labels of lines that end together stay in the frame
        for at_height, (_, name) in zip(heights, sorted(ends), strict=True):
            words(axes, RIGHT + 12, at_height - up, name, align="left", size=SMALL)
        # Later steps of a real run may differ from machine to machine: the words say what holds.
        ways = "; ".join(
            f"{name} starts at 2^{round(v[0])} and ends "
            + ("lower" if v[-1] < v[0] else "higher" if v[-1] > v[0] else "there")
            for name, v in exponents.items()
        )
        marks = "Crosses mark the steps that overflowed" if at else "No step overflowed"
        return Picture(axes, f"{title}, stairs over {steps} steps: {ways}. {marks}.")
