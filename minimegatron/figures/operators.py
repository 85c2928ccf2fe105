"""The conjugate pair f and g, drawn as what flows through them forward and backward.

arXiv:1909.08053, figure 3; Megatron-LM's copy_to_tensor_model_parallel_region (f) and
reduce_from_tensor_model_parallel_region (g). Each operator is drawn with the same two lanes: what
one does forward, the other does backward, and the drawings are mirror images.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    HATCHES,
    LARGE,
    NORMAL,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)

WIDTH = 400  # of one operator's drawing, in pixels


def f_and_g(tp: int = 2) -> Picture:
    """f and g side by side: identity and all-reduce, the one's forward the other's backward."""
    if not 2 <= tp <= 4:
        raise ValueError(f"this picture has room for 2 to 4 ranks, and tp is {tp}")
    with canvas(900, 420) as axes:
        _operator(axes, 10, "f", "X", tp)
        _operator(axes, 490, "g", "Y", tp)
        return Picture(
            axes,
            f"Two mirror images on {tp} ranks. f: forward, every rank gets X as it is; backward, "
            "an all-reduce adds the ranks' gradients dX_i. g: forward, an all-reduce adds the "
            "ranks' partial sums Y_i; backward, every rank gets dY as it is.",
        )


def _operator(axes: Axes, left: float, name: str, value: str, tp: int) -> None:
    """One operator. f goes from the whole to the ranks, g from the ranks to the whole."""
    spreads = name == "f"
    words(axes, left + WIDTH / 2, 24, name, size=LARGE)
    _lane(axes, left, 150, value, tp, forward=True, spreads=spreads)
    _lane(axes, left, 340, f"d{value}", tp, forward=False, spreads=spreads)


def _lane(
    axes: Axes, left: float, middle: float, value: str, tp: int, *, forward: bool, spreads: bool
) -> None:
    """One direction of one operator; the whole tensor stands on f's left and on g's right."""
    adds = forward != spreads  # towards the whole: the ranks' parts are summed
    hatch = HATCHES["F" if forward else "B"]
    whole, ranks = (left, left + WIDTH - 90) if spreads else (left + WIDTH - 90, left)
    words(axes, left + WIDTH / 2, middle - 72, "forward" if forward else "backward", bold=True)
    patch(axes, whole, middle - 50, 90, 100, value, hatch=hatch, size=NORMAL)
    for rank in range(tp):
        label = indexed(value, rank) if adds else value
        top, height = middle - 50 + rank * 100 / tp, 100 / tp
        colour = rank_colour(rank)
        patch(axes, ranks, top, 90, height, label, colour=colour, hatch=hatch)
    words(axes, left + WIDTH / 2, middle - 22, "all-reduce" if adds else "identity", bold=adds)
    words(axes, left + WIDTH / 2, middle + 22, "adds" if adds else "sends nothing", size=SMALL)
    ends = (left + 105, middle), (left + WIDTH - 105, middle)
    arrow(axes, *(ends if forward else ends[::-1]), dashed=not forward)
