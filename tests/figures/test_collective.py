from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes

import minimegatron as mm
from minimegatron import figures
from minimegatron.figures.collective import CAPTIONS, boxes


def run(op: str, tp: int) -> list[list[int]]:
    """What the ranks really hold after the collective."""

    def on_rank(mesh: mm.Mesh) -> list[int]:
        axis = mesh.tp
        x = torch.arange(axis.size) + 10 * axis.rank
        if op == "barrier":
            mm.barrier(axis)
        elif op == "send":
            if axis.rank == 0:
                mm.send(x, axis, to=1)
            elif axis.rank == 1:
                mm.recv(x, axis, source=0)
        elif op == "all_gather":
            x = mm.all_gather(x[:1], axis)
        else:
            x = getattr(mm, op)(x, axis)
        return [int(number) for number in x]

    return mm.launch(on_rank, tp=tp, device="cpu")


@pytest.mark.parametrize("op", CAPTIONS)
def test_the_boxes_hold_what_the_collective_gives(op: str, drawn: list[Axes]) -> None:
    picture = figures.collective(op, 4)
    before, after = boxes(op, 4)
    assert [[number for number, _ in row] for row in after] == run(op, 4)
    shown = [int(t.get_text()) for t in drawn[0].texts if t.get_text().isdigit()]
    assert shown == [number for held in (before, after) for row in held for number, _ in row]
    assert (
        "After: "
        + "; ".join(f"rank {r} holds {' '.join(map(str, row))}" for r, row in enumerate(run(op, 4)))
        in picture.alt
    )


def test_a_box_has_the_colour_of_the_rank_that_its_number_comes_from() -> None:
    for op in CAPTIONS:
        for held in boxes(op, 4):
            for number, source in (box for row in held for box in row):
                assert source is None or number // 10 == source


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="reduce_all.*broadcast, all_gather"):
        figures.collective("reduce_all")
    with pytest.raises(ValueError, match="2 to 4 ranks"):
        figures.collective("broadcast", 8)
