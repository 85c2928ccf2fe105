"""A column-split product that feeds a row-split one, and what flows through the two.

arXiv:1909.08053, figure 3a without its GELU; in Megatron-LM a ColumnParallelLinear before a
RowParallelLinear. Between the copy on the left and the sum on the right every rank works alone.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    HATCHES,
    NORMAL,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)

LANE = 56  # height of one rank's lane, in pixels


def column_row_pair(tp: int = 2, backward: bool = False) -> Picture:
    """Z = XAB with A cut in columns and B in rows; with `backward`, the gradients' way back too."""
    if not 2 <= tp <= 4:
        raise ValueError(f"this picture has room for 2 to 4 ranks, and tp is {tp}")
    panel = 90 + LANE * tp
    with canvas(900, panel * (2 if backward else 1)) as axes:
        _panel(axes, 0, tp, forward=True)
        alt = (
            f"Forward on {tp} ranks: f copies X to every rank; rank r makes XA_r from its columns "
            "of A, then XA_rB_r from its rows of B; g adds these sheets to Z, on every rank."
        )
        if backward:
            _panel(axes, panel, tp, forward=False)
            alt += (
                " Backward, from right to left: g copies dZ to every rank; rank r makes dZ times "
                "B_r transposed, then times A_r transposed; f adds these to dX, on every rank."
            )
        return Picture(axes, alt)


def _panel(axes: Axes, top: float, tp: int, *, forward: bool) -> None:
    """One direction. The whole tensors stand at the ends, the ranks' lanes between them."""
    middle = top + 55 + LANE * tp / 2
    hatch = HATCHES["F" if forward else "B"]
    left, right = ("X", "Z") if forward else ("dX", "dZ")
    words(axes, 450, top + 24, "forward" if forward else "backward", bold=True)
    patch(axes, 15, middle - 40, 80, 80, left, hatch=hatch, size=NORMAL)
    patch(axes, 805, middle - 40, 80, 80, right, hatch=hatch, size=NORMAL)
    for x, name, adds in ((160, "f", not forward), (740, "g", forward)):
        words(axes, x, top + 24, f"{name}: {'add' if adds else 'copy'}", bold=adds)
    for rank in range(tp):
        lane, colour = top + 55 + LANE * rank, rank_colour(rank)
        a, b = indexed("A", rank), indexed("B", rank)
        labels = (f"X{a}", f"X{a}{b}") if forward else (f"dZ {b}ᵀ{a}ᵀ", f"dZ {b}ᵀ")
        for x, label in zip((225, 485), labels, strict=True):
            patch(axes, x, lane, 190, LANE - 8, label, colour=colour, hatch=hatch, size=SMALL)
        centre = lane + (LANE - 8) / 2
        steps = (((100, middle), (220, centre)), ((418, centre), (482, centre)))
        for start, end in (*steps, ((680, centre), (800, middle))):
            ends = (start, end) if forward else (end, start)
            arrow(axes, *ends, dashed=not forward)
