from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.style import PAPER


def test_a_white_square_for_every_value_dropped(drawn: list[Axes]) -> None:
    mask = torch.eye(4) == 1
    figures.dropout_masks("Masks", {"all": [mask, ~mask]})
    hexes = [tuple(p.get_facecolor()) for p in drawn[0].patches]
    white = tuple(int(PAPER[i : i + 2], 16) / 255 for i in (1, 3, 5)) + (1.0,)
    assert hexes.count(white) == 12 + 4


def test_the_words_say_who_drew_the_same() -> None:
    torch.manual_seed(0)
    a, b, c = torch.rand(3, 8, 8) > 0.5
    rows = {"one stream": [a, a], "two streams": [a, b], "mixed": [a, a, c]}
    said = figures.dropout_masks("Masks", rows).alt
    assert "one stream: the same mask on every rank" in said
    assert "two streams: no two masks are equal" in said
    assert "mixed: some masks are equal" in said


@pytest.mark.parametrize(
    "rows",
    [{}, {"five": [torch.ones(2, 2) > 0] * 5}, {"flat": [torch.ones(2) > 0]}],
)
def test_what_cannot_be_drawn_is_refused(rows: dict[str, list[torch.Tensor]]) -> None:
    with pytest.raises(ValueError, match="one to four ranks"):
        figures.dropout_masks("Masks", rows)
