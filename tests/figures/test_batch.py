from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minimegatron import figures


def rectangles(axes: Axes, height: float) -> list[Rectangle]:
    """The outlines of this height, from left to right and downwards as drawn."""
    boxes = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_linewidth()]
    return [box for box in boxes if box.get_height() == height]


@pytest.mark.parametrize("counts", [(8, 2), (3, 3), (1, 2, 5)])
def test_the_width_of_a_token_is_its_weight_and_weights_add_up_to_one(
    counts: tuple[int, ...], drawn: list[Axes]
) -> None:
    figures.token_weights(counts)
    boxes = rectangles(drawn[0], 48)
    weights = [Fraction(t.get_text()) for t in drawn[0].texts if t.get_text()[0] == "1"]
    total = sum(counts)
    assert len(boxes) == len(weights) == 2 * total
    assert weights[:total] == [Fraction(1, total)] * total
    means = [Fraction(1, len(counts) * n) for n in counts for _ in range(n)]
    assert weights[total:] == means
    for box, weight in zip(boxes, weights, strict=True):
        assert box.get_width() == pytest.approx(860 * float(weight))
    assert sum(weights) == 2


def test_equal_counts_make_the_two_means_the_same() -> None:
    assert "each weighs 1/6" in figures.token_weights((3, 3)).alt
    assert "1/6 on rank 0, 1/6 on rank 1" in figures.token_weights((3, 3)).alt


def test_points_on_the_ideal_line_halve_with_every_doubling(drawn: list[Axes]) -> None:
    figures.steps_against_batch({1: 80, 2: 40, 4: 20, 8: 12}, least=10)
    ideal, floor, points = (np.asarray(line.get_xydata()).tolist() for line in drawn[0].lines)
    slope = (ideal[1][1] - ideal[0][1]) / (ideal[1][0] - ideal[0][0])
    above = [y - (ideal[0][1] + slope * (x - ideal[0][0])) for x, y in points]
    assert above[:3] == pytest.approx([0, 0, 0])
    assert above[3] < -1  # y points downwards: above the ideal line
    assert floor[0][1] > points[3][1]  # and no point is below the floor


def test_what_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 4 ranks"):
        figures.split_batch(dp=3, batch=16)
    with pytest.raises(ValueError, match="a few tokens"):
        figures.token_weights((16, 1))
    with pytest.raises(ValueError, match="two points"):
        figures.steps_against_batch({1: 5}, 1)
