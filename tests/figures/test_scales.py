from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.scales import APART, BOTTOM, LEFT, RIGHT, TOP


def test_a_halving_is_a_step_down_and_lines_that_coincide_stand_apart(drawn: list[Axes]) -> None:
    figures.loss_scales("Scale", {"one": [8.0, 8.0, 4.0], "other": [8.0, 8.0, 4.0]}, {1})
    crosses, one, other = (line.get_xydata() for line in drawn[0].lines)
    unit = (BOTTOM - TOP) / 4  # from 2^4 down to 2^0
    assert one[:, 1].tolist() == [TOP + unit] * 4 + [TOP + 2 * unit] * 2
    assert (other[:, 1] - one[:, 1]).tolist() == [APART] * 6
    assert one[0, 0] == LEFT and one[-1, 0] == RIGHT
    assert crosses[:, 0].tolist() == [(LEFT + RIGHT) / 2]  # the middle of step 1 of 0 to 2


def test_the_words_say_where_it_starts_and_whether_it_fell() -> None:
    alt = figures.loss_scales("Scale", {"a": [8.0, 4.0], "b": [4.0, 8.0], "c": [2.0, 2.0]}, {0}).alt
    assert "a starts at 2^3 and ends lower; b starts at 2^2 and ends higher" in alt
    assert "c starts at 2^1 and ends there. Crosses mark" in alt
    assert figures.loss_scales("S", {"a": [1.0, 1.0]}, []).alt.endswith("No step overflowed.")


@pytest.mark.parametrize(
    "histories", [{}, {"a": [1.0]}, {"a": [1.0, 1.0], "b": [1.0]}, dict.fromkeys("abcde", [1.0, 2])]
)
def test_what_cannot_be_drawn_is_refused(histories: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="loss_scales draws one to four"):
        figures.loss_scales("Scale", histories, [])
