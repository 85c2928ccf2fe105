from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.curves import BOTTOM, LEFT, RIGHT, TOP


def test_lines_are_to_scale_from_zero(drawn: list[Axes]) -> None:
    figures.curves("Loss", {"one": [4.0, 2.0, 1.0], "other": [4.0, 3.0]})
    first, second = (line.get_xydata().tolist() for line in drawn[0].lines)
    middle = (LEFT + RIGHT) / 2
    half, quarter = BOTTOM - (BOTTOM - TOP) / 2, BOTTOM - (BOTTOM - TOP) / 4
    assert first == [[LEFT, TOP], [middle, half], [RIGHT, quarter]]
    assert second == [[LEFT, TOP], [middle, BOTTOM - 3 * (BOTTOM - TOP) / 4]]


def test_lines_differ_by_dashes_and_carry_their_labels(drawn: list[Axes]) -> None:
    figures.curves("Loss", {"one": [1.0, 0.5], "other": [1.0, 0.5]})
    assert len({str(line.get_linestyle()) for line in drawn[0].lines}) == 2
    heights = {text.get_text(): text.get_position()[1] for text in drawn[0].texts}
    assert abs(heights["one"] - heights["other"]) >= 20  # legible though the lines end together


def test_the_words_give_both_ends_of_every_line() -> None:
    alt = figures.curves("Loss", {"one": [4.0, 1.5], "other": [4.0, 2.25]}).alt
    assert "one from 4.00 to 1.50" in alt and "other from 4.00 to 2.25" in alt


@pytest.mark.parametrize("lines", [{}, {"one": [1.0]}, {"one": [1.0, -1.0]}, {"one": [0.0, 0.0]}])
def test_what_cannot_be_drawn_is_refused(lines: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="curves draws"):
        figures.curves("Loss", lines)
