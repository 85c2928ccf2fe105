"""ZeRO: who keeps what, and the optimizer's step between the two halves of an all-reduce.

"ZeRO", arXiv:1910.02054, figure 1. What every rank keeps whole is grey; a shard has its rank's
colour and stands where it lies in the flat vector. Widths are bytes. Megatron-LM:
`DistributedOptimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
from matplotlib.axes import Axes

from minimegatron.analysis.memory import SPLIT_FROM_STAGE, STATES, state_bytes
from minimegatron.figures.bars import number
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    HATCHES,
    INK,
    PAPER,
    SMALL,
    arrow,
    canvas,
    patch,
    rank_colour,
    words,
)
from minimegatron.figures.widgets import PictureExplorer

HEADS = {"parameters": "parameters", "gradients": "gradients", "optimizer": "AdamW's averages"}
HATCH = {"gradients": HATCHES["B"]}
LEFT, A_BYTE, GAP = 100, 37, 18  # pixels: of the first bar, of a byte a parameter, between bars
BAR, LANE = 30, 40


def zero_shards(stage: int = 0, dp: int = 4) -> Picture:
    """What each of `dp` ranks keeps in float32 under a stage of ZeRO; stage 0 is without.

    Raises ValueError for another stage, or more than eight ranks.
    """
    if not 1 <= dp <= 8:
        raise ValueError(f"zero_shards draws one to eight ranks, not {dp}")
    kept = state_bytes("fp32", 1, dp, stage)
    together = number(sum(kept.values()))
    with canvas(900, 80 + LANE * dp) as axes:
        for rank in range(dp):
            words(axes, 20, 80 + LANE * rank + BAR / 2, f"rank {rank}", align="left")
            words(axes, 840, 80 + LANE * rank + BAR / 2, together)
        words(axes, 840, 24, "together", bold=True, size=SMALL)
        left, said = LEFT, []
        for kind, size in STATES["fp32"].items():
            width, split = A_BYTE * size, stage >= SPLIT_FROM_STAGE[kind]
            words(axes, left + width / 2, 24, HEADS[kind], bold=True, size=SMALL)
            words(axes, left + width / 2, 52, f"{size} bytes each", size=SMALL)
            for rank in range(dp):
                _bar(axes, left, 80 + LANE * rank, width, rank, dp if split else 0, HATCH.get(kind))
            said.append(f"{HEADS[kind]}: {f'its 1/{dp}' if split else 'all'}")
            left += width + GAP
        name = f"ZeRO stage {stage}" if stage else "Plain data parallelism"
        return Picture(
            axes,
            f"What each rank of dp={dp} keeps. {name}: {', '.join(said)}. Together {together} "
            "bytes for each of the model's parameters.",
        )


def _bar(
    axes: Axes, left: float, top: float, width: float, rank: int, parts: int, hatch: str | None
) -> None:
    """A flat vector: all of it, or of `parts` the rank's own in its place."""
    colour = PAPER if parts else EVERY_RANK
    patch(axes, left, top, width, BAR, colour=colour, hatch="" if parts else hatch or "")
    if parts:
        at = left + width / parts * rank
        patch(axes, at, top, width / parts, BAR, colour=rank_colour(rank), hatch=hatch or "")


def explore_zero() -> PictureExplorer:
    """Sliders for the stage and for dp above `zero_shards`."""
    return PictureExplorer(
        zero_shards,
        stage=ipywidgets.IntSlider(value=1, min=0, max=3, description="stage"),
        dp=ipywidgets.SelectionSlider(options=(1, 2, 4, 8), value=4, description="dp"),
    )


def sharded_step(dp: int = 4) -> Picture:
    """A step after backward: all-reduce, then all do all; and opened, each doing its part.

    Raises ValueError for fewer than two ranks, or more than four.
    """
    if not 2 <= dp <= 4:
        raise ValueError(f"this picture has room for 2 to 4 ranks, and dp is {dp}")
    height = LANE * dp
    with canvas(900, 2 * height + 180) as axes:
        for row, opened in enumerate((False, True)):
            top = 50 + (height + 74) * row
            first, second = ("reduce-scatter", "all-gather") if opened else ("all-reduce", "")
            words(axes, 250, top - 20, first, bold=True, size=SMALL)
            words(axes, 695, top - 20, second or "nothing to send", bold=opened, size=SMALL)
            for rank in range(dp):
                y, colour = top + LANE * rank, rank_colour(rank)
                patch(axes, 12, y, 150, BAR, "its ∇L", colour=colour)
                everywhere = [top + LANE * other for other in range(dp)]
                _lines(axes, 166, 334, y, everywhere)
                _lines(axes, 624, 744, y, everywhere if opened else [y])
                work = f"AdamW on 1/{dp}" if opened else "AdamW on all of it"
                _bar(axes, 340, y, 280, rank, dp if opened else 0, None)
                x = 340 + (280 / dp * (rank + 0.5) if opened else 140)
                own = f"1/{dp}" if opened else work
                words(axes, x, y + BAR / 2, own, size=SMALL, on=colour if opened else EVERY_RANK)
                patch(axes, 750, y, 138, BAR, "weights", size=SMALL)
            how = "each rank its part" if opened else "all ranks the same work"
            words(axes, 480, top - 20, how, size=SMALL)
        words(axes, 450, 2 * height + 156, "Grey: every rank holds the same.", size=SMALL)
        return Picture(
            axes,
            f"Two ways from {dp} ranks' gradients to new weights on every rank. Above, an "
            "all-reduce; then all ranks update all weights, and nothing is left to send. Below, a "
            f"reduce-scatter leaves each rank 1/{dp} of the sum; AdamW updates that part of the "
            "weights, and an all-gather joins the parts.",
        )


def _lines(axes: Axes, left: float, right: float, start: float, ends: Sequence[float]) -> None:
    """From the middle of one lane to the middle of others; an arrow's head for its own."""
    for end in ends:
        axes.plot([left, right - 20], [start + BAR / 2, end + BAR / 2], color=INK, linewidth=1)
    arrow(axes, (right - 20, start + BAR / 2), (right, start + BAR / 2))
