from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_replicas_are_counted_on_one_rank_and_left_out_on_the_others(
    tp: int, drawn: list[Axes]
) -> None:
    picture = figures.norm_squares(tp)
    texts = [text.get_text() for text in drawn[0].texts]
    assert texts.count("R") == 1
    assert texts.count("left out") == tp - 1
    assert picture.alt.endswith(" + ".join(f"S_{rank}" for rank in range(tp)) + " + R.")


def test_other_numbers_of_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="tp=8: norm_squares draws 2 to 4 ranks"):
        figures.norm_squares(8)
