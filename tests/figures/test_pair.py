from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


def labels(axes: Axes) -> dict[str, list[str]]:
    """The words of the forward and of the backward panel."""
    words = [(text.get_text(), text.get_position()[1]) for text in axes.texts]
    half = next(y for word, y in words if word == "backward")
    return {
        "forward": [word for word, y in words if y < half],
        "backward": [word for word, y in words if y >= half],
    }


def test_f_and_g_change_roles_on_the_way_back(drawn: list[Axes]) -> None:
    figures.column_row_pair(3, backward=True)
    seen = labels(drawn[0])
    assert {"f: copy", "g: add"} <= set(seen["forward"])
    assert {"f: add", "g: copy"} <= set(seen["backward"])


def test_every_rank_has_a_lane_each_way(drawn: list[Axes]) -> None:
    figures.column_row_pair(4, backward=True)
    seen = labels(drawn[0])
    for rank in "₀₁₂₃":
        assert {f"XA{rank}", f"XA{rank}B{rank}"} <= set(seen["forward"])
        assert {f"dZ B{rank}ᵀ", f"dZ B{rank}ᵀA{rank}ᵀ"} <= set(seen["backward"])


def test_the_words_tell_of_the_way_back_only_where_it_is_drawn() -> None:
    assert "Backward" not in figures.column_row_pair(2).alt
    assert "Backward" in figures.column_row_pair(2, backward=True).alt


def test_too_many_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 4 ranks"):
        figures.column_row_pair(5)
