"""Predictions beside measurements.

Who writes a number down before measuring it learns more, above all when the number was wrong. A
lesson asks first (`prediction = None`), measures, then shows both. No prediction is no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    PAPER,
    SMALL,
    canvas,
    patch,
    words,
)


def compare_prediction(
    what: str, prediction: object, measured: float, found: str = "measured"
) -> None:
    """Print a learner's prediction (a number, or None) beside the measured value.

    `found` says how it was found: "measured", or "computed" where a formula gave it.

    Raises TypeError for a prediction that is neither a number nor None.
    """
    if prediction is None:
        shown, verdict = "none yet", ""
    elif isinstance(prediction, Real):
        shown, verdict = f"{prediction:,}", f"   {_verdict(float(prediction), measured)}"
    else:
        raise TypeError(f"a prediction is a number or None, not {prediction!r}")
    width = max(len(shown), len(f"{measured:,}"))
    print(what)
    print(f"  predicted  {shown:>{width}}")
    print(f"  {found:9}  {measured:>{width},}{verdict}")


def _verdict(prediction: float, measured: float) -> str:
    if math.isclose(prediction, measured, rel_tol=1e-9):
        return "as predicted"
    if prediction * measured <= 0:
        return "not as predicted"
    return f"{measured / prediction:.3g} times the prediction"


def predicted_and_measured(
    title: str, values: Mapping[str, tuple[float, float]], unit: str
) -> Picture:
    """Pairs of bars, one pair a row: what was predicted (empty) above what was measured.

    Args:
        values: row label -> (predicted, measured), both in `unit`.
    """
    if not values or min(min(pair) for pair in values.values()) < 0:
        raise ValueError("values needs at least one row, and no value below zero")
    longest = max(max(pair) for pair in values.values()) or 1
    with canvas(900, 70 + 76 * len(values)) as axes:
        words(axes, 20, 28, f"{title} ({unit})", align="left", bold=True)
        for row, (label, (predicted, measured)) in enumerate(values.items()):
            top = 58 + 76 * row
            words(axes, 20, top + 30, label, align="left")
            bars = ((predicted, "predicted", PAPER), (measured, "measured", EVERY_RANK))
            for line, (value, kind, colour) in enumerate(bars):
                length = 420 * value / longest
                patch(axes, 190, top + 30 * line, length, 26, colour=colour)
                text = f"{value:,} {kind}"
                words(axes, 200 + length, top + 30 * line + 13, text, align="left", size=SMALL)
        rows = "; ".join(f"{label}: {p:,} and {m:,}" for label, (p, m) in values.items())
        return Picture(axes, f"Pairs of bars, {title}, predicted and measured, in {unit}: {rows}.")
