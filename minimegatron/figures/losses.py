"""Training runs that should coincide, laid over one another, with the bar that they must beat.

Lines that coincide hide each other. So each run is a thin line with marks of its own shape, set at
steps of its own: where all the marks lie on one curve, the runs are one curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, patch, words

LEFT, RIGHT, TOP, BOTTOM = 70, 720, 60, 350  # of the frame, in pixels
MARKS = ("o", "s", "^", "x")
MARKS_A_RUN = 6


def losses(
    title: str, runs: Mapping[str, Sequence[float]], bar: tuple[str, float] | None = None
) -> Picture:
    """The losses of one to four runs of equal length; the axis spans the whole numbers about them.

    Args:
        runs: label -> loss at step 0, 1, 2, ..., in nats per token.
        bar: a label and a loss, drawn as a level line: what a run must get below.
    """
    lengths = {len(values) for values in runs.values()}
    if not 1 <= len(runs) <= len(MARKS) or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError("losses draws one to four runs of one length, at least two steps")
    steps = lengths.pop()
    every = [loss for values in runs.values() for loss in values] + ([bar[1]] if bar else [])
    high, low = math.floor(max(every)) + 1, math.ceil(min(every)) - 1
    apart = max(max(at) - min(at) for at in zip(*runs.values(), strict=True))

    def down(loss: float) -> float:
        return TOP + (BOTTOM - TOP) * (high - loss) / (high - low)

    with canvas(900, 400) as axes:
        words(axes, LEFT, 28, f"{title} (nats per token)", align="left", bold=True)
        patch(axes, LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, colour=PAPER)
        words(axes, LEFT - 10, TOP, f"{high}", align="right", size=SMALL)
        words(axes, LEFT - 10, BOTTOM, f"{low}", align="right", size=SMALL)
        words(axes, LEFT, BOTTOM + 24, "step 0", size=SMALL)
        words(axes, RIGHT, BOTTOM + 24, f"step {steps - 1}", size=SMALL)
        spoken = ""
        if bar is not None:
            axes.plot([LEFT, RIGHT], [down(bar[1])] * 2, color=INK, linestyle=(0, (6, 3)))
            words(axes, RIGHT + 10, down(bar[1]), bar[0], align="left", size=SMALL)
            spoken = f" The {bar[0]} is {bar[1]:.2f}."
        gap = max(1, steps // MARKS_A_RUN)
        for i, (label, values) in enumerate(runs.items()):
            mark: dict[str, Any] = {"marker": MARKS[i], "markersize": 8, "markeredgewidth": 1.5}
            look = mark | {"color": INK, "markerfacecolor": PAPER}
            across = [LEFT + (RIGHT - LEFT) * step / (steps - 1) for step in range(steps)]
            heights = [down(loss) for loss in values]
            at = (i * gap // len(runs), gap)
            axes.plot(across, heights, linewidth=0.8, markevery=at, **look)
            line = BOTTOM - 24 * (len(runs) - i) + 6  # falling losses leave this corner free
            axes.plot([LEFT + 24], [line], **look)
            words(axes, LEFT + 42, line, label, align="left", size=SMALL)
        ways = "; ".join(f"{name} from {v[0]:.2f} to {v[-1]:.2f}" for name, v in runs.items())
        alt = f"{title}, {steps} steps, laid over one another: {ways} nats per token."
        return Picture(axes, f"{alt} They are nowhere more than {apart:.1g} apart.{spoken}")
