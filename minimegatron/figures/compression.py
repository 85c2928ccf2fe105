"""Compressed gradients: what a rank sends, what stays with it, and what that does to the loss.

Seide et al. 2014 (1-bit SGD); Lin et al., arXiv:1712.01887 (top-k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

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

LEFT, HIGH = 150, 110  # pixels: of the names, of the highest bar
RIGHT = 640  # pixels: where the losses' frame ends


def error_feedback(gradients: Sequence[Sequence[float]], k: int = 1) -> Picture:
    """Top-k on one rank, step by step: gradient plus residual, of which the k largest are sent.

    Args:
        gradients: of each step, its values: none below zero.

    Raises ValueError for negative values, or for more than 5 steps of 5 values.
    """
    width = len(gradients[0])
    every = [value for gradient in gradients for value in gradient]
    if len(gradients) > 5 or width > 5 or min(every) < 0:
        raise ValueError("error_feedback draws up to 5 steps of 5 values, none below zero")
    story = _story(gradients, k)
    tallest = max(new + old for step in story for new, old, _ in step)
    pitch = (890 - LEFT) / len(story)
    bar = min(34.0, (pitch - 26) / width)
    with canvas(900, 2 * HIGH + 150) as axes:
        floors = (66 + HIGH, 96 + 2 * HIGH)
        for floor, lines in zip(
            floors, (("gradient", "+ residual"), ("stays: the", "next residual")), strict=True
        ):
            for line, text in enumerate(lines):
                words(axes, 8, floor - HIGH / 2 + 24 * line, text, align="left", size=SMALL)
        for step, values in enumerate(story):
            left = LEFT + pitch * step
            words(axes, left + bar * width / 2, 22, f"step {step}", bold=True)
            for i, (new, old, sent) in enumerate(values):
                x, unit = left + bar * i, HIGH / tallest
                above = floors[0] - (new + old) * unit
                own = rank_colour(0) if sent else EVERY_RANK
                if old:
                    hatch = "" if sent else "///"
                    patch(axes, x, floors[0] - old * unit, bar, old * unit, colour=own, hatch=hatch)
                if new:
                    patch(axes, x, above, bar, new * unit, colour=own)
                words(axes, x + bar / 2, above - 12, f"{new + old:g}", size=SMALL)
                if not sent:
                    rest = new + old
                    top = floors[1] - rest * unit
                    patch(axes, x, top, bar, rest * unit, colour=EVERY_RANK, hatch="///")
            for floor in floors:
                axes.plot((left - 4, left + bar * width + 4), (floor, floor), color=INK)
        y = floors[1] + 28
        for x, colour, hatch, name in (
            (150, EVERY_RANK, "", "gradient of this step"),
            (410, EVERY_RANK, "///", "residual"),
            (560, rank_colour(0), "", "sent"),
        ):
            patch(axes, x, y - 9, 26, 18, colour=colour, hatch=hatch)
            words(axes, x + 36, y, name, align="left", size=SMALL)
        told = "; ".join(
            f"step {step}: sent {_listed(v[0] + v[1] for v in values if v[2])}, stays "
            f"{_listed(0 if v[2] else v[0] + v[1] for v in values)}"
            for step, values in enumerate(story)
        )
        return Picture(
            axes,
            f"Error feedback on one rank, {len(story)} steps of {width} values: what stays is "
            f"added to the next gradient, and of the sum the {k} largest are sent. {told}.",
        )


def _story(gradients: Sequence[Sequence[float]], k: int) -> list[list[tuple[float, float, bool]]]:
    """Of each step and value: the gradient, the residual before it, and whether it is sent."""
    residual = [0.0] * len(gradients[0])
    story = []
    for gradient in gradients:
        parts = list(zip(gradient, residual, strict=True))
        sent = sorted(range(len(parts)), key=lambda i: -sum(parts[i]))[:k]
        story.append([(new, old, i in sent) for i, (new, old) in enumerate(parts)])
        residual = [0.0 if sent else new + old for new, old, sent in story[-1]]
    return story


def _listed(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def losses_by_message(title: str, rows: Mapping[str, tuple[float, float, float | None]]) -> Picture:
    """A row for each message: the loss it ends with, with feedback and, if measured, without.

    Args:
        rows: label -> (bytes without compression / its bytes, loss with feedback, without).
    """
    found = [loss for _, *both in rows.values() for loss in both if loss is not None]
    if not 1 <= len(rows) <= 8:
        raise ValueError(f"losses_by_message draws one to eight rows, not {len(rows)}")
    low, high = math.floor(min(found) * 5) / 5, math.ceil(max(found) * 5) / 5
    left, top, pitch = 190, 70, 40

    def across(loss: float) -> float:
        return left + 20 + (RIGHT - left - 40) * (loss - low) / (high - low)

    bottom = top + pitch * len(rows)
    with canvas(900, bottom + 80) as axes:
        words(axes, 8, 28, title, align="left", bold=True)
        words(axes, 890, 28, "bytes", align="right", bold=True)
        patch(axes, left, top - 12, RIGHT - left, bottom - top + 12, colour=PAPER)
        for loss in (low, high):
            words(axes, across(loss), bottom + 18, f"{loss:.1f}", size=SMALL)
        for row, (label, (times, loss, without)) in enumerate(rows.items()):
            y = top + pitch * (row + 0.35)
            words(axes, left - 12, y, label, align="right", size=SMALL)
            fewer = f"1/{times:.0f} of none's" if times > 1 else "all"
            words(axes, 890, y, fewer, align="right", size=SMALL)
            for value, face in ((without, PAPER), (loss, INK)):
                if value is not None:
                    axes.plot(across(value), y, "o", color=INK, markersize=11,
                              markerfacecolor=face, markeredgewidth=2)  # fmt: skip
        y = bottom + 52
        for x, face, name in ((220, INK, "with feedback"), (440, PAPER, "without")):
            axes.plot(x, y, "o", color=INK, markersize=11, markerfacecolor=face, markeredgewidth=2)
            words(axes, x + 16, y, name, align="left", size=SMALL)
        told = "; ".join(
            f"{label} {loss:.2f}" + ("" if without is None else f", without feedback {without:.2f}")
            for label, (_, loss, without) in rows.items()
        )
        return Picture(axes, f"{title}, a row for each message: {told}.")
