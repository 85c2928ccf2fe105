from __future__ import annotations

import time

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minimegatron import figures
from minimegatron.figures.counting import BAR, LEFT, RIGHT, shares, short


def test_each_bar_is_whole_and_cut_by_its_terms(drawn: list[Axes]) -> None:
    figures.model_costs(hidden=8, layers=1, seq=8, vocab=8)
    shapes = [p for p in drawn[0].patches if isinstance(p, Rectangle) and p.get_height() == BAR]
    bars = [p for p in shapes if p.get_linewidth() and not p.get_hatch()]
    for terms in (bars[:3], bars[3:6], bars[6:10]):
        assert terms[0].get_x() == LEFT
        assert terms[1].get_x() == pytest.approx(LEFT + terms[0].get_width())
        assert terms[-1].get_x() + terms[-1].get_width() == pytest.approx(RIGHT)
    # 12 h^2 + 13 h + 2 h of a layer and the last norm, beside 8 rows of words and of positions.
    assert bars[0].get_width() == pytest.approx((RIGHT - LEFT) * 888 / (888 + 64 + 64))
    # 72 h^2, 12 s h, 6 V h: 72 to 12 to 6.
    assert bars[4].get_width() == pytest.approx((RIGHT - LEFT) * 12 / 90)


def test_the_words_hold_the_papers_model() -> None:
    alt = figures.model_costs().alt
    assert "parameters 1.21 B: layers 93.4%, words 6.5%, positions 0.1%" in alt
    assert "FLOPs a token 8.02 G: matrices 84.7%, scores 9.4%, head 5.9%" in alt
    # 18 bytes a parameter, and of the layers 32 sbh, as no mask is kept, and little else.
    assert "bytes, bf16 24.1 GB: weights 10.1%" in alt
    assert "activations 9.3%" in alt


def test_numbers_are_short() -> None:
    assert [short(v) for v in (999.6, 1213456789, 8.02e12, 12, 999_999)] == [
        "1 k", "1.21 G", "8.02 T", "12 ", "1 M",
    ]  # fmt: skip
    assert shares({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}


def test_moving_a_slider_draws_again_in_time() -> None:
    explorer = figures.explore_model()
    assert explorer.first.alt == figures.model_costs().alt
    seconds = []
    for name, value in (("hidden", 256), ("layers", 1), ("seq", 131072), ("vocab", 256000)):
        start = time.process_time()
        explorer.controls[name].value = value
        seconds.append(time.process_time() - start)
    assert explorer.picture.value == figures.model_costs(256, 1, 131072, 256000).html()
    assert sorted(seconds)[2] < 0.2
