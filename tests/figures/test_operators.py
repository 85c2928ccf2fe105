from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


def test_each_operator_reduces_in_one_direction_and_the_other_in_the_other(
    drawn: list[Axes],
) -> None:
    figures.f_and_g(2)
    at = [(text.get_text(), *text.get_position()) for text in drawn[0].texts]
    places = {(label, "f" if x < 450 else "g", y < 230) for label, x, y in at}
    forward, backward = True, False
    assert ("all-reduce", "f", backward) in places and ("identity", "f", forward) in places
    assert ("all-reduce", "g", forward) in places and ("identity", "g", backward) in places
    assert ("all-reduce", "f", forward) not in places
    assert ("all-reduce", "g", backward) not in places


def test_too_many_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 4 ranks"):
        figures.f_and_g(5)
