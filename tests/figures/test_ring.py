from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.ranks.ledger import ring_bytes


def grids(axes: Axes, tp: int) -> list[list[list[int]]]:
    """The numbers as drawn: [step][rank][piece]."""
    numbers = [int(t.get_text()) for t in axes.texts if t.get_text().isdigit()]
    cells = iter(numbers)
    steps = len(numbers) // tp**2
    return [[[next(cells) for _ in range(tp)] for _ in range(tp)] for _ in range(steps)]


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_every_step_each_rank_gets_one_piece_and_the_bytes_are_those_of_the_ledger(
    tp: int, drawn: list[Axes]
) -> None:
    figures.ring_all_reduce(tp)
    steps = grids(drawn[0], tp)
    assert len(steps) - 1 == tp * ring_bytes("all_reduce", 1, tp)  # pieces that one rank sends
    for before, after in zip(steps, steps[1:], strict=False):
        for rank in range(tp):
            (piece,) = (p for p in range(tp) if after[rank][p] != before[rank][p])
            sent, own = before[rank - 1][piece], before[rank][piece]
            assert after[rank][piece] in (sent + own, sent)
    half = tp - 1
    finished = [[piece for piece in range(tp) if row[piece] == tp] for row in steps[half]]
    assert finished == [[rank] for rank in range(tp)]  # as mm.reduce_scatter leaves them
    assert steps[0] == [[1] * tp] * tp and steps[-1] == [[tp] * tp] * tp


def test_too_many_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 4 ranks"):
        figures.ring_all_reduce(5)
