from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minimegatron import figures
from minimegatron.figures.timeline import Events

EARLY: Events = [
    ("gradient", 3), ("gradient", 2), ("start", 0), ("gradient", 1), ("gradient", 0), ("start", 1)
]  # fmt: skip
LATE: Events = [*(("gradient", layer) for layer in (3, 2, 1, 0)), ("start", 0), ("start", 1)]


def lefts(axes: Axes, label: str) -> list[float]:
    """Where the bars with this label begin; a label stands in the middle of its bar."""
    middles = [t.get_position()[0] for t in axes.texts if t.get_text() == label]
    boxes = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_linewidth()]
    return [
        next(b.get_x() for b in boxes if b.get_x() + b.get_width() / 2 == pytest.approx(middle))
        for middle in middles
    ]


def test_a_bucket_starts_after_its_gradients_and_after_the_bucket_before(drawn: list[Axes]) -> None:
    picture = figures.bucket_timeline({"early": EARLY, "late": LATE})
    (axes,) = drawn
    assert lefts(axes, "dW₃") == [120, 120]
    slot = lefts(axes, "dW₂")[0] - 120
    assert lefts(axes, "bucket 0") == pytest.approx([120 + 2 * slot, 120 + 4 * slot])
    assert lefts(axes, "bucket 1") == pytest.approx([120 + 4 * slot, 120 + 6 * slot])
    assert "early: 1 of 2" in picture.alt
    assert "late: 0 of 2" in picture.alt


def test_buckets_out_of_order_or_of_unequal_size_are_refused() -> None:
    for events in (EARLY[1:], [*EARLY, ("start", 3)], EARLY[:2]):
        with pytest.raises(ValueError, match="make no timeline"):
            figures.bucket_timeline({"run": events})
