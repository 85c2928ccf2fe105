"""How much memory a training step holds: up in forward, down in backward.

One staircase for each way to train, all with the loss in the middle: forward is the left half,
backward the right half, whatever number of tensors either keeps. Lines are told apart by dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from minimegatron.figures.bars import number
from minimegatron.figures.curves import DASHES
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, patch, words

LEFT, RIGHT, TOP, BOTTOM = 90, 620, 60, 320  # of the frame, in pixels
MIDDLE = (LEFT + RIGHT) / 2


def held_memory(title: str, unit: str, steps: Mapping[str, tuple[Sequence[float], int]]) -> Picture:
    """Values in `unit` over one step, from zero.

    Args:
        steps: label -> what was held after each tensor that came or went, and how many of these
            values belong to forward.

    Raises ValueError for no step or more than four, for one without values in forward and in
    backward, and for values below zero or zero throughout.
    """
    every = [value for values, _ in steps.values() for value in values]
    halves = [(forward, len(values) - forward) for values, forward in steps.values()]
    if not 1 <= len(steps) <= len(DASHES) or min(map(min, halves)) < 1:
        raise ValueError(f"held_memory draws one to {len(DASHES)} steps, forward and backward")
    if min(every) < 0 or max(every) == 0:
        raise ValueError("held_memory draws values of zero and more")
    with canvas(900, 366) as axes:
        words(axes, LEFT, 28, f"{title} ({unit})", align="left", bold=True)
        patch(axes, LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, colour=PAPER)
        words(axes, LEFT - 10, TOP, number(max(every)), align="right", size=SMALL)
        words(axes, LEFT - 10, BOTTOM, "0", align="right", size=SMALL)
        axes.plot([MIDDLE, MIDDLE], [TOP, BOTTOM], color=INK, linewidth=0.8)
        words(axes, (LEFT + MIDDLE) / 2, BOTTOM + 24, "forward", size=SMALL)
        words(axes, MIDDLE, BOTTOM + 24, "loss", size=SMALL)
        words(axes, (MIDDLE + RIGHT) / 2, BOTTOM + 24, "backward", size=SMALL)
        told = []
        for i, ((label, (values, forward)), dashes) in enumerate(
            zip(steps.items(), DASHES, strict=False)
        ):
            backward = len(values) - forward
            ends = [
                LEFT + (MIDDLE - LEFT) * (j + 1) / forward
                if j < forward
                else MIDDLE + (RIGHT - MIDDLE) * (j + 1 - forward) / backward
                for j in range(len(values))
            ]
            across = [x for a, b in pairwise([LEFT, *ends]) for x in (a, b)]
            down = [BOTTOM - (BOTTOM - TOP) * v / max(every) for v in values for _ in (0, 1)]
            axes.plot(across, down, color=INK, linestyle=dashes, linewidth=2)
            line = TOP + 14 + 54 * i
            axes.plot([RIGHT + 20, RIGHT + 66], [line, line], color=INK, linestyle=dashes)
            words(axes, RIGHT + 76, line, label, align="left", size=SMALL)
            most = f"most: {number(max(values))}"
            words(axes, RIGHT + 76, line + 22, most, align="left", size=SMALL)
            kept = number(values[forward - 1])
            told.append(f"{label}: {kept} at the loss, at most {number(max(values))}")
        return Picture(
            axes, f"{title} in {unit}, up in forward, down in backward. {'; '.join(told)}."
        )
