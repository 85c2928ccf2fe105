from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minimegatron import figures
from minimegatron.figures.bars import BAR, LOOKS, number
from minimegatron.figures.style import RANK_COLOURS, luminance

ROWS = {"plain": {"weights": 2.0, "state": 6.0}, "ZeRO-1": {"weights": 2.0, "state": 1.5}}


def bars(axes: Axes) -> list[Rectangle]:
    """The outlines of what was drawn at a bar's height, in order."""
    shapes = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_height() == BAR]
    return [shape for shape in shapes if shape.get_linewidth() and not shape.get_hatch()]


def test_terms_are_to_one_scale_and_lie_end_to_end(drawn: list[Axes]) -> None:
    figures.stacked_bars("Bytes", "GB", ROWS)
    weights, state, weights1, state1 = bars(drawn[0])
    assert weights.get_x() == weights1.get_x()
    assert state.get_x() == pytest.approx(weights.get_x() + weights.get_width())
    assert state.get_width() == pytest.approx(3 * weights.get_width())
    assert state1.get_width() == pytest.approx(weights.get_width() * 1.5 / 2)
    assert weights.get_facecolor() == weights1.get_facecolor()


def test_a_mark_stands_where_the_measured_value_ends(drawn: list[Axes]) -> None:
    figures.stacked_bars("Bytes", "GB", ROWS, {"plain": {"weights": 2.0, "state": 5.0}})
    weights, state, *_ = bars(drawn[0])
    marks = [line.get_xdata()[0] for line in drawn[0].lines]
    assert marks == pytest.approx([state.get_x(), state.get_x() + state.get_width() * 5 / 6])


def test_the_limit_is_on_the_scale_even_where_no_bar_reaches_it(drawn: list[Axes]) -> None:
    figures.stacked_bars("Bytes", "GB", ROWS, limit=("one GPU", 16.0))
    (line,), (weights, *_) = drawn[0].lines, bars(drawn[0])
    assert line.get_xdata()[0] == pytest.approx(weights.get_x() + 8 * weights.get_width())


def test_the_words_hold_every_number() -> None:
    alt = figures.stacked_bars("Bytes", "GB", ROWS, {"plain": 7.9}, ("one GPU", 4)).alt
    assert "plain: weights 2, state 6, together 8, measured 7.9;" in alt
    assert "ZeRO-1: weights 2, state 1.5, together 3.5." in alt
    assert alt.endswith("A dashed line marks one GPU, 4.")


def test_looks_differ_in_grey_or_in_hatch_and_are_no_ranks_colour() -> None:
    seen = [(round(luminance(colour), 1), hatch) for colour, hatch in LOOKS]
    assert len(set(seen)) == len(LOOKS)
    assert not {colour for colour, _ in LOOKS} & set(RANK_COLOURS)


def test_numbers_read_as_people_write_them() -> None:
    assert [number(v) for v in (0, 120.0, 16.6406, 0.4688, 1536, 1234.5, 96)] == [
        "0", "120", "16.6", "0.469", "1,536", "1,234", "96",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "measured"),
    [
        ({}, None),
        ({"a": {}}, None),
        ({"a": {"x": -1.0}}, None),
        ({"a": {str(i): 1.0 for i in range(9)}}, None),
        (ROWS, {"ZeRO-2": 1.0}),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows: dict, measured: dict | None) -> None:
    with pytest.raises(ValueError, match="stacked_bars draws one row or more"):
        figures.stacked_bars("Bytes", "GB", rows, measured)
