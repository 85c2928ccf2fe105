from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 2), (4, 3), (3, 1)])
def test_the_mesh_counts_along_tp_first(tp: int, dp: int, drawn: list[Axes]) -> None:
    figures.mesh(tp, dp)
    labels = [text.get_text() for text in drawn[0].texts]
    for rank in range(tp * dp):
        place = labels[labels.index(f"rank {rank}") + 1]
        assert place == f"tp.rank {rank % tp}, dp.rank {rank // tp}"


def test_the_kernel_is_drawn_beside_its_ranks(drawn: list[Axes]) -> None:
    assert "3 more, the ranks" in figures.notebook_and_ranks(3).alt
    labels = [text.get_text() for text in drawn[0].texts]
    assert sum(label.startswith("rank ") for label in labels) == 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="not 5 and 1"):
        figures.mesh(5, 1)
    with pytest.raises(ValueError, match="not 5"):
        figures.notebook_and_ranks(5)
