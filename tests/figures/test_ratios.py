from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures

ROW = {"lower": 0.4, "median": 0.5, "upper": 1.0, "expected": 0.25}


def test_equal_factors_are_equally_wide_and_both_numbers_are_told(drawn: list[Axes]) -> None:
    picture = figures.ratios("Worth", {"chunks": ROW})
    (axes,) = drawn
    marks = {str(line.get_marker()): float(line.get_xdata()[0]) for line in axes.lines[:-2]}  # type: ignore[index]
    texts = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert texts["1"] - marks["o"] == pytest.approx(marks["o"] - marks["D"])
    assert texts["0.5"] == pytest.approx(marks["o"])
    assert "chunks: 0.5, expected 0.25." in picture.alt


def test_no_row_and_ratios_that_cannot_be_are_refused() -> None:
    for rows in ({}, {"a": ROW | {"median": 0.0}}):
        with pytest.raises(ValueError, match="ratios draws one row or more"):
            figures.ratios("Worth", rows)
