from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from torch.nn.functional import gelu

import minimegatron as mm
from minimegatron import figures
from minimegatron.ranks.ledger import Record
from minimegatron.ranks.mesh import Axis, Mesh

ORDERS = ("column-row", "column-column", "row-row", "row-column")


def forward(order: str, x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """One rank's part of the MLP with weights of ones, written apart from picture and lesson."""
    up, down = order.split("-")
    n = axis.size
    if up == "column":
        hidden = gelu(mm.f(x, axis) @ torch.ones(8, 32 // n))
        hidden = mm.f(mm.gather(hidden, axis), axis) if down == "column" else hidden
    else:
        hidden = gelu(mm.g(mm.scatter(x, axis) @ torch.ones(8 // n, 32), axis))
        hidden = mm.f(hidden, axis) if down == "column" else mm.scatter(hidden, axis)
    if down == "row":
        return mm.g(hidden @ torch.ones(32 // n, 8), axis)
    return mm.gather(hidden @ torch.ones(32, 8 // n), axis)


def sent(mesh: Mesh, order: str) -> list[Record]:
    with mm.ledger() as log:
        forward(order, torch.ones(6, 8, requires_grad=True), mesh.tp).sum().backward()
    return log.records


@pytest.mark.parametrize("order", ORDERS)
def test_the_messages_in_the_picture_are_those_of_the_ledger(order: str, drawn: list[Axes]) -> None:
    figures.mlp_order(order)
    texts = [text.get_text() for text in drawn[0].texts]
    seen = sorted(text.replace("\n", " ") for text in texts if text.startswith("all-"))
    sizes = {6 * 8 * 4: "6 × 8", 6 * 32 * 4: "6 × 32"}
    records = mm.launch(sent, order, tp=2)[0]
    assert seen == sorted(f"{r.op.replace('_', '-')} {sizes[r.bytes]}" for r in records)


@pytest.mark.parametrize("tp", [2, 4])
def test_every_rank_has_a_lane_and_its_own_index(tp: int, drawn: list[Axes]) -> None:
    figures.mlp_order("column-row", tp)
    texts = [text.get_text() for text in drawn[0].texts]
    for rank in "₀₁₂₃"[:tp]:
        assert f"XA{rank}\n6 × {32 // tp}" in texts
        assert f"H{rank}B{rank}\n6 × 8" in texts


def test_an_order_that_does_not_exist_or_does_not_fit_is_refused() -> None:
    for order in ("row", "row-diagonal", "column-row-row"):
        with pytest.raises(ValueError, match="an order is"):
            figures.mlp_order(order)
    with pytest.raises(ValueError, match="2 or 4 ranks"):
        figures.mlp_order("column-row", tp=3)
