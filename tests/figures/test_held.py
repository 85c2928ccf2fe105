from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.held import BOTTOM, LEFT, MIDDLE, RIGHT, TOP


def test_the_loss_is_in_the_middle_whatever_each_half_keeps(drawn: list[Axes]) -> None:
    figures.held_memory("Held", "kB", {"a": ([2, 4, 0], 2), "b": ([1, 1, 2, 0], 1)})
    stairs = [line.get_xydata().tolist() for line in drawn[0].lines if len(line.get_xdata()) > 2]
    half, quarter = (LEFT + MIDDLE) / 2, TOP + 0.75 * (BOTTOM - TOP)
    middle = (TOP + BOTTOM) / 2
    assert stairs[0] == [
        [LEFT, middle], [half, middle], [half, TOP], [MIDDLE, TOP], [MIDDLE, BOTTOM],
        [RIGHT, BOTTOM],
    ]  # fmt: skip
    assert stairs[1][:2] == [[LEFT, quarter], [MIDDLE, quarter]]
    assert stairs[1][-1] == [pytest.approx(RIGHT), BOTTOM]


def test_lines_differ_by_dashes(drawn: list[Axes]) -> None:
    figures.held_memory("Held", "kB", {name: ([1, 0], 1) for name in "abcd"})
    stairs = [line for line in drawn[0].lines if len(line.get_xdata()) > 2]
    assert len({str(line._unscaled_dash_pattern) for line in stairs}) == 4


def test_the_words_give_the_loss_and_the_peak() -> None:
    alt = figures.held_memory("Held", "kB", {"full": ([1, 2, 3, 0], 2)}).alt
    assert "full: 2 at the loss, at most 3" in alt


@pytest.mark.parametrize("steps", [{}, {"a": ([1, 2], 2)}, {"a": ([1], 0)}])
def test_a_step_without_both_halves_is_refused(steps: dict[str, tuple[list[float], int]]) -> None:
    with pytest.raises(ValueError, match="forward and backward"):
        figures.held_memory("Held", "kB", steps)


@pytest.mark.parametrize("values", [[1, -1], [0, 0]])
def test_what_cannot_be_held_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="zero and more"):
        figures.held_memory("Held", "kB", {"a": (values, 1)})
