from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.losses import BOTTOM, LEFT, MARKS, RIGHT, TOP

RUN = [6.5, 6.0, 5.5, 5.0, 4.5]


def test_lines_and_bar_are_to_scale_between_whole_numbers(drawn: list[Axes]) -> None:
    figures.losses("Loss", {"one": RUN}, ("bar", 5.5))
    bar, line, _ = (line.get_xydata().tolist() for line in drawn[0].lines)
    middle = [(LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2]  # step 2 of 4, and 5.5 between 7 and 4
    assert bar == [[LEFT, middle[1]], [RIGHT, middle[1]]]
    assert line[2] == middle
    assert line[0] == [LEFT, pytest.approx(TOP + (BOTTOM - TOP) / 6)]
    assert {"7", "4", "step 0", "step 4"} <= {text.get_text() for text in drawn[0].texts}


def test_equal_runs_show_marks_of_their_own_at_steps_of_their_own(drawn: list[Axes]) -> None:
    figures.losses("Loss", {name: [5.0] * 100 for name in "abcd"})
    lines = [line for line in drawn[0].lines if len(line.get_xydata()) == 100]
    assert [line.get_marker() for line in lines] == list(MARKS)
    steps = [set(range(*line.get_markevery()[:1], 100, line.get_markevery()[1])) for line in lines]
    assert all(steps) and sum(map(len, steps)) == len(set.union(*steps))


def test_the_words_give_both_ends_and_how_far_the_runs_are_apart() -> None:
    alt = figures.losses("Loss", {"one": [6.0, 4.0], "other": [6.0, 4.25]}, ("bar", 5.0)).alt
    assert "one from 6.00 to 4.00; other from 6.00 to 4.25" in alt
    assert "nowhere more than 0.2 apart" in alt
    assert "The bar is 5.00" in alt


@pytest.mark.parametrize(
    "runs", [{}, {"one": [1.0]}, {"one": [1.0, 1.0], "other": [1.0]}, dict.fromkeys("abcde", RUN)]
)
def test_what_cannot_be_drawn_is_refused(runs: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="losses draws"):
        figures.losses("Loss", runs)
