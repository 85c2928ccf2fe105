"""Dropout masks of several ranks side by side: who drops what.

Megatron-LM keeps two random states, one equal on all tensor-parallel ranks and one of each rank's
own (`megatron/core/tensor_parallel/random.py`); a picture of their masks tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, patch, rank_colour, words

LEFT, PITCH = 210, 165  # of the first mask, and from one rank's mask to the next, in pixels


def dropout_masks(title: str, masks: Mapping[str, Sequence[Tensor]]) -> Picture:
    """A row for each label: one mask (rows, columns) a rank, true where a value was kept.

    Raises ValueError for no row, more than four ranks, or masks that are not small matrices.
    """
    ranks = max(map(len, masks.values()), default=0)
    every = [mask for row in masks.values() for mask in row]
    if not 1 <= ranks <= 4 or any(m.dim() != 2 or max(m.shape) > 16 for m in every):
        raise ValueError("dropout_masks draws matrices of up to 16 by 16, for one to four ranks")
    cell = 128 / max(max(mask.shape) for mask in every)
    with canvas(900, 110 + 150 * len(masks)) as axes:
        words(axes, 20, 26, title, align="left", bold=True)
        for rank in range(ranks):
            words(axes, LEFT + PITCH * rank + 64, 64, f"rank {rank}", size=SMALL)
        for line, (label, row) in enumerate(masks.items()):
            top = 84 + 150 * line
            words(axes, 20, top + 64, label, align="left", size=SMALL)
            for rank, mask in enumerate(row):
                left, (down, across) = LEFT + PITCH * rank, mask.shape
                patch(axes, left, top, cell * across, cell * down, colour=rank_colour(rank))
                for i, j in (~mask).nonzero().tolist():
                    patch(axes, left + cell * j, top + cell * i, cell, cell, colour=PAPER)
        axes.plot([20, 880], [44, 44], color=INK, linewidth=0.8)
        words(axes, 450, 92 + 150 * len(masks), "White: dropped.", size=SMALL)
        said = "; ".join(f"{label}: {_verdict(row)}" for label, row in masks.items())
        return Picture(axes, f"{title}, one mask a rank, for {ranks} ranks. {said}.")


def _verdict(row: Sequence[Tensor]) -> str:
    different = {tuple(mask.flatten().tolist()) for mask in row}
    if len(different) == 1:
        return "the same mask on every rank"
    return "no two masks are equal" if len(different) == len(row) else "some masks are equal"
