from __future__ import annotations

import torch
from matplotlib.axes import Axes

import minimegatron as mm
from minimegatron import figures
from minimegatron.ranks.mesh import Mesh


def grids(axes: Axes) -> list[list[list[str]]]:
    """The numbers as drawn, [step][rank][piece]; "" where a rank holds nothing."""
    cells = [t.get_text() for t in axes.texts if t.get_text() in ("", "1", "2", "4")]
    del cells[0]  # the start has no "inside" or "across" above it
    return [[cells[8 * s + 2 * r :][:2] for r in range(4)] for s in range(4)]


def test_the_picture_shows_what_ranks_hold_after_each_step(drawn: list[Axes]) -> None:
    def held(mesh: Mesh) -> list[list[float]]:
        inside, across = mm.split_axis(mesh.dp, 2)
        x = torch.ones(2)
        piece = mm.reduce_scatter(x, inside)
        total = mm.all_reduce(piece, across)
        return [t.tolist() for t in (x, piece, total, mm.all_gather(total, inside))]

    figures.hierarchical_all_reduce()
    steps = grids(drawn[0])
    for rank, states in enumerate(mm.launch(held, dp=4)):
        for step, values in enumerate(states):
            assert [float(n) for n in steps[step][rank] if n] == values
    assert [row.index("") for row in steps[1]] == [1, 0, 1, 0]


def test_the_bytes_are_those_that_are_given() -> None:
    picture = figures.hierarchical_all_reduce({"inside": 192.0, "across": 96.0})
    assert picture.alt.endswith("One rank sends 192 bytes inside its node, 96 across.")
