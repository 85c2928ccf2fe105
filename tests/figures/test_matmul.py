from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minimegatron import figures
from minimegatron.figures.style import rank_colour


def bands(axes: Axes, rank: int) -> list[Rectangle]:
    colour = rank_colour(rank).lower()
    return [p for p in axes.patches if isinstance(p, Rectangle) and to_hex(p.get_fc()) == colour]


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_columns_run_from_left_to_right_and_fill_the_matrix(tp: int, drawn: list[Axes]) -> None:
    figures.split_columns(tp)
    a, y = zip(*(bands(drawn[0], rank) for rank in range(tp)), strict=True)
    for matrix in (a, y):
        for band, following in zip(matrix, matrix[1:], strict=False):
            assert band.get_x() + band.get_width() == pytest.approx(following.get_x())
    assert sum(band.get_width() for band in a) == pytest.approx(sum(b.get_width() for b in y))


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_a_row_cut_gives_every_rank_a_sheet_as_large_as_y(tp: int, drawn: list[Axes]) -> None:
    figures.split_rows(tp)
    y = drawn[0].patches[-1]
    assert isinstance(y, Rectangle)
    size = (y.get_width(), y.get_height())
    tops = []
    for rank in range(tp):
        x_part, a_part, sheet = bands(drawn[0], rank)
        assert (sheet.get_width(), sheet.get_height()) == size
        assert x_part.get_width() == pytest.approx(a_part.get_height())  # the same inner indices
        tops.append(a_part.get_y())
    assert tops == sorted(tops)


@pytest.mark.parametrize("draw", [figures.split_columns, figures.split_rows])
def test_the_words_name_every_count_and_the_uncut_product(draw) -> None:
    assert "4 groups" in draw(4).alt and "A_3" in draw(4).alt
    assert "nothing is sent" in draw(1).alt
    for tp in (0, 3, 16):
        with pytest.raises(ValueError, match=f"1, 2, 4 or 8, not {tp}"):
            draw(tp)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_the_sizes_below_the_blocks_are_those_that_torch_cuts(tp: int, drawn: list[Axes]) -> None:
    x, a = torch.ones(6, 8), torch.ones(8, 16)
    figures.split_columns(tp)
    figures.split_rows(tp)
    labels = [[text.get_text() for text in axes.texts] for axes in drawn]
    by_columns, by_rows = ([label for label in some if " × " in label] for some in labels)
    a_i = a.chunk(tp, dim=1)[0]
    assert by_columns == said(x, a_i, x @ a_i, whole=[0])
    x_i, a_i = x.chunk(tp, dim=1)[0], a.chunk(tp, dim=0)[0]
    assert by_rows == said(x_i, a_i, x_i @ a_i, x @ a, whole=[3])


def said(*blocks: torch.Tensor, whole: list[int]) -> list[str]:
    shapes = [f"{block.shape[0]} × {block.shape[1]}" for block in blocks]
    return [shape if i in whole else f"each {shape}" for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_the_wrong_bias_is_counted_once_a_rank(tp: int, drawn: list[Axes]) -> None:
    assert f"holds b {tp} times" in figures.row_bias(tp).alt
    labels = [text.get_text() for text in drawn[0].texts]
    assert (
        sum(label.startswith("X") and label[1] in "₀₁₂₃" and "+ b" in label for label in labels)
        == tp
    )
    assert f"XA + {tp}b" in labels and "XA + b" in labels
