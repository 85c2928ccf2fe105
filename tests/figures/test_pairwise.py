from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


@pytest.mark.parametrize(("tp", "rounds"), [(2, 1), (4, 2)])
def test_every_round_doubles_the_sum_until_all_hold_all(
    tp: int, rounds: int, drawn: list[Axes]
) -> None:
    figures.pairwise_all_reduce(tp)
    labels = [t.get_text() for t in drawn[0].texts if "x" in t.get_text()]
    assert len(labels) == tp * (rounds + 1)
    for number in range(rounds + 1):
        terms = [label.split(" + ") for label in labels[number * tp : (number + 1) * tp]]
        assert all(len(set(each)) == 2**number for each in terms)
    assert len(set(labels[-tp:])) == 1


def test_other_numbers_of_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or 4 ranks, and tp is 3"):
        figures.pairwise_all_reduce(3)
