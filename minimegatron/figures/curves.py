"""Numbers that change from step to step, as lines: the losses of runs that should, or should not,
be the same.

Lines are told apart by dashes and by a label at their end, not by colour: a colour means a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, patch, words

LEFT, RIGHT, TOP, BOTTOM = 90, 640, 60, 300  # of the frame, in pixels
DASHES = ("-", (0, (6, 3)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))


def curves(title: str, lines: Mapping[str, Sequence[float]], step: str = "step") -> Picture:
    """One line for each label: its value at step 0, 1, 2, ... The axis starts at zero.

    Raises ValueError for no line or more than four, for lines of fewer than two values, and for
    values below zero.
    """
    if not 1 <= len(lines) <= len(DASHES) or min(map(len, lines.values())) < 2:
        raise ValueError("curves draws one to four lines of at least two values each")
    highest = max(map(max, lines.values()))
    if min(map(min, lines.values())) < 0 or highest == 0:
        raise ValueError("curves draws values of zero and more")
    last = max(map(len, lines.values())) - 1
    with canvas(900, 350) as axes:
        words(axes, LEFT, 28, title, align="left", bold=True)
        patch(axes, LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, colour=PAPER)
        words(axes, LEFT - 10, TOP, f"{highest:.2g}", align="right", size=SMALL)
        words(axes, LEFT - 10, BOTTOM, "0", align="right", size=SMALL)
        words(axes, LEFT, BOTTOM + 24, f"{step} 0", size=SMALL)
        words(axes, RIGHT, BOTTOM + 24, f"{step} {last}", size=SMALL)
        ends = {}
        for (label, values), dashes in zip(lines.items(), DASHES, strict=False):
            across = [LEFT + (RIGHT - LEFT) * i / last for i in range(len(values))]
            down = [BOTTOM - (BOTTOM - TOP) * value / highest for value in values]
            axes.plot(across, down, color=INK, linestyle=dashes, linewidth=2)
            ends[label] = (across[-1], down[-1])
        height = 0.0
        for label, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
            height = max(y, height + 22)  # labels of lines that end together stand apart
            words(axes, x + 10, height, label, align="left", size=SMALL)
        ways = "; ".join(f"{name} from {v[0]:.2f} to {v[-1]:.2f}" for name, v in lines.items())
        return Picture(axes, f"{title}, lines over {last + 1} {step}s: {ways}.")
