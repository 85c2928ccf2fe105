"""What every rank holds before and after a collective: one picture for all of them.

Four ranks, or a few more or less, each with a tensor of its own: rank r holds 10 r, 10 r + 1, and
so on, as in lesson 01, so that the picture shows the very numbers that a cell prints. A box has the
colour of the rank whose number it holds; a sum, made of every rank's numbers, is grey.
Megatron-LM calls these collectives through torch.distributed.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    NORMAL,
    SMALL,
    arrow,
    canvas,
    patch,
    rank_colour,
    words,
)

Box = tuple[int, int | None]  # a number, and the rank it comes from; None for a sum
Held = list[list[Box]]  # [rank] -> the boxes it holds

CAPTIONS = {
    "broadcast": "Rank 0's tensor goes to every rank.",
    "all_gather": "Every rank gets every rank's tensor, joined in rank order.",
    "reduce_scatter": "The tensors are added; rank r keeps part r of the sum.",
    "all_reduce": "The tensors are added; every rank gets the whole sum.",
    "all_to_all": "Part i goes to rank i. Rank r ends with part r of every rank.",
    "send": "Rank 0 sends, rank 1 receives into a tensor of its own. The others take no part.",
    "barrier": "Nothing changes hands. No rank goes on before the last has come.",
}
BOX, ROW, TOP = 62, 44, 74  # a box's width, a rank's height, where rank 0 begins, in pixels


def collective(op: str, tp: int = 4) -> Picture:
    """The ranks' boxes before and after `op`: a collective's name, "send" or "barrier".

    Raises ValueError for another op, or for a number of ranks that the picture has no room for.
    """
    if op not in CAPTIONS:
        raise ValueError(f"op {op!r} is not one of {', '.join(CAPTIONS)}")
    if not 2 <= tp <= 4:
        raise ValueError(f"this picture has room for 2 to 4 ranks, and tp is {tp}")
    before, after = boxes(op, tp)
    with canvas(900, TOP + ROW * tp + 52) as axes:
        middle = TOP + ROW * tp / 2
        _held(axes, 105, "before", before)
        _held(axes, 545, "after", after)
        for rank in range(tp):
            y = TOP + ROW * (rank + 0.5)
            words(axes, 90, y, f"rank {rank}", align="right", size=SMALL)
        words(axes, 450, middle - 26, op, bold=True, size=SMALL)
        arrow(axes, (375, middle), (525, middle))
        words(axes, 450, TOP + ROW * tp + 28, CAPTIONS[op], size=SMALL)
        return Picture(axes, f"{op} on {tp} ranks. Before: {_spoken(before)}. "
                       f"After: {_spoken(after)}. {CAPTIONS[op]}")  # fmt: skip


def boxes(op: str, tp: int) -> tuple[Held, Held]:
    """What every rank holds before and after `op`."""
    before: Held = [[(10 * r + i, r) for i in range(tp)] for r in range(tp)]
    sums: list[Box] = [(sum(10 * r + i for r in range(tp)), None) for i in range(tp)]
    if op == "all_gather":  # one box a rank, so that the result has room
        before = [row[:1] for row in before]
        return before, [[row[0] for row in before] for _ in before]
    after = {
        "broadcast": [before[0] for _ in before],
        "reduce_scatter": [[total] for total in sums],
        "all_reduce": [sums for _ in before],
        "all_to_all": [[row[r] for row in before] for r in range(tp)],
        "send": [before[0], before[0], *before[2:]],
        "barrier": before,
    }
    return before, after[op]


def _held(axes: Axes, left: float, title: str, held: Held) -> None:
    """The boxes of every rank, a row each."""
    words(axes, left + 2 * BOX, TOP - 40, title)
    for rank, row in enumerate(held):
        for i, (number, source) in enumerate(row):
            colour = EVERY_RANK if source is None else rank_colour(source)
            place = (left + BOX * i, TOP + ROW * rank + 4, BOX - 4, ROW - 8)
            patch(axes, *place, str(number), colour=colour, size=NORMAL)


def _spoken(held: Held) -> str:
    rows = (" ".join(str(number) for number, _ in row) for row in held)
    return "; ".join(f"rank {rank} holds {row}" for rank, row in enumerate(rows))
