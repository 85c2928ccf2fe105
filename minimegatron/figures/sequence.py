"""Sequence parallelism: an all-reduce opened in the middle, and a layer's two kinds of regions.

arXiv:2205.05198, section 4.2.2 and figures 5 and 6; Megatron-LM's `sequence_parallel`. A cut along
the sequence is drawn as lanes one below the other, as a cut along heads or columns is; the labels
say which, and the arrows show what is sent: straight on, or from every rank to every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    INK,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)

LANE = 40  # height of one rank's lane, in pixels
GAP, FIRST, WAY = 24, 14, 80


def open_all_reduce(tp: int = 2) -> Picture:
    """From one half of a layer to the next: an all-reduce, and the same as its two halves.

    Raises ValueError for more lanes than the picture has room for, or fewer than two.
    """
    if not 2 <= tp <= 4:
        raise ValueError(f"this picture has room for 2 to 4 ranks, and tp is {tp}")
    height, part = LANE * tp, f"s/{tp}"
    with canvas(900, 2 * height + 180) as axes:
        for row, opened in enumerate((False, True)):
            top = 46 + (height + 70) * row
            centres = [top + LANE * rank + 17 for rank in range(tp)]
            crossing = [(a, b) for a in centres for b in centres]
            _stack(axes, 12, top, 130, [f"sheet, rank {r}" for r in range(tp)])
            _fan(axes, 146, 344, crossing, "reduce-scatter" if opened else "all-reduce", top)
            work = f"work on {part if opened else 's'} tokens"
            _stack(axes, 350, top, 200, [work] * tp, grey=not opened)
            straight = list(zip(centres, centres, strict=True))
            ways, deed = (crossing, "all-gather") if opened else (straight, "nothing to send")
            _fan(axes, 554, 752, ways, deed, top)
            _stack(axes, 758, top, 130, ["s tokens"] * tp, grey=True)
        words(axes, 450, 2 * height + 150, "Grey: every rank holds the same.", size=SMALL)
        return Picture(
            axes,
            f"Two ways from {tp} ranks' sheets to s tokens on every rank. Above, an all-reduce; "
            "then all do the same work on s tokens, and nothing is left to send. Below, a "
            f"reduce-scatter leaves each rank {part} tokens of the sum; it works on those, and an "
            "all-gather joins them.",
        )


def sequence_regions(sequence_parallel: bool = True) -> Picture:
    """A pre-LN layer's regions on 2 ranks: where heads or columns are cut, and what the rest does.

    Without `sequence_parallel` the rest is whole on every rank (f and g around the lanes), with it
    the rest is split along the sequence (g and ḡ of arXiv:2205.05198).
    """
    row = 136 + LANE * 2
    with canvas(900, 2 * row) as axes:
        for half, names in enumerate((("X", "attention", "Z"), ("Z", "MLP", "Y"))):
            _half(axes, row * half, *names, sequence_parallel)
        return Picture(axes, _alt(sequence_parallel))


def _stack(
    axes: Axes, left: float, top: float, width: float, labels: Sequence[str], grey: bool = False
) -> None:
    """One labelled lane a rank; `grey` where all hold the same."""
    for rank, label in enumerate(labels):
        at = top + LANE * rank
        if grey:
            patch(axes, left, at, width, LANE - 6, label, size=SMALL)
        else:
            patch(axes, left, at, width, LANE - 6, label, colour=rank_colour(rank), size=SMALL)


def _arrows(axes: Axes, left: float, right: float, ways: Sequence[tuple[float, float]]) -> None:
    """Lines from `left` to `right`; those that end together share one head."""
    neck = right - 20
    for start, end in ways:
        axes.plot([left, neck], [start, end], color=INK, linewidth=1.2)
    for end in sorted({end for _, end in ways}):
        arrow(axes, (neck, end), (right, end))


def _fan(
    axes: Axes,
    left: float,
    right: float,
    ways: Sequence[tuple[float, float]],
    deed: str,
    top: float,
) -> None:
    """Arrows from lane to lane, and above them what is done; bold where something is sent."""
    _arrows(axes, left, right, ways)
    sent = any(start != end for start, end in ways)
    words(axes, (left + right) / 2, top - 20, deed, size=SMALL, bold=sent)


def _half(axes: Axes, top: float, x: str, name: str, y: str, sequence_parallel: bool) -> None:
    """One residual block, from left to right; `left` moves along."""
    lanes, bottom = top + 76, top + 76 + LANE * 2
    middle = (lanes + bottom - 6) / 2
    centres = [lanes + LANE * rank + 17 for rank in range(2)]
    left: float = FIRST

    def block(label: str, width: float, last: bool = False) -> None:
        """A box on every rank (grey), or one lane a rank; then an arrow, or one a lane."""
        nonlocal left
        if sequence_parallel:
            names = [indexed(label, r) if label in (x, y) else label for r in range(2)]
            _stack(axes, left, lanes, width, names)
        else:
            patch(axes, left, middle - 22, width, 44, label, size=SMALL)
        left += width
        if not last:
            for at in centres if sequence_parallel else [middle]:
                arrow(axes, (left + 2, at), (left + GAP - 2, at))
        left += GAP

    def crossing(letter: str, deed: str, into: bool) -> None:
        """The operator between two regions: every lane to every lane, or one copy or sum."""
        nonlocal left
        outside = centres if sequence_parallel else [middle]
        pairs = [(a, b) if into else (b, a) for a in outside for b in centres]
        _arrows(axes, left + 2, left + WAY - 2, pairs)
        words(axes, left + WAY / 2, top + 56, f"{letter}: {deed}", size=SMALL, bold=deed != "copy")
        left += WAY

    block(x, 40)
    block("LayerNorm", 96, last=True)
    left -= GAP
    border = [left + WAY / 2]
    crossing(*(("g", "all-gather") if sequence_parallel else ("f", "copy")), into=True)
    words(axes, left + 135, top + 20, name, bold=True)
    labels = ["heads 0, 1", "heads 2, 3"]
    if name == "MLP":
        labels = [f"{indexed('A', r)}, GELU, {indexed('B', r)}" for r in range(2)]
    _stack(axes, left, lanes, 270, [f"{label}: all s tokens" for label in labels])
    left += 270
    border.append(left + WAY / 2)
    crossing(*(("ḡ", "reduce-scatter") if sequence_parallel else ("g", "all-reduce")), into=False)
    block("+ bias", 64)
    block("dropout", 76)
    centre = left + 15
    block("+", 30)
    start = FIRST + 20  # the residual: up from X, along the top, down into the sum
    high = (lanes if sequence_parallel else middle - 22) - 1
    axes.plot([start, start, centre], [high, top + 36, top + 36], color=INK, linewidth=1.8)
    arrow(axes, (centre, top + 35), (centre, high - 2))
    block(y, 40, last=True)
    outer = ("sequence-parallel", "s/2 tokens") if sequence_parallel else ("whole", "s tokens")
    inner = ("tensor-parallel", f"1/2 of the {'heads' if x == 'X' else 'columns'}")
    for at in border:
        axes.plot([at, at], [lanes - 8, bottom + 42], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for a, b, (kind, size) in (
        (FIRST, border[0], outer),
        (border[0], border[1], inner),
        (border[1], 886, outer),
    ):
        words(axes, (a + b) / 2, bottom + 14, kind, size=SMALL, bold=True)
        words(axes, (a + b) / 2, bottom + 34, size, size=SMALL)


def _alt(sequence_parallel: bool) -> str:
    inside = (
        "In the middle the tensor-parallel region: 2 lanes, each all s tokens of 2 of 4 heads, or "
        "of 1/2 of the MLP's columns."
    )
    if sequence_parallel:
        return (
            f"A pre-LN layer on 2 ranks, in two halves. {inside} Left and right of it the "
            f"sequence-parallel regions: LayerNorm, bias, dropout and residual in 2 lanes of "
            "s/2 tokens each. g, an all-gather, leads from every lane to every lane at the "
            "left border; ḡ, a reduce-scatter, at the right one."
        )
    return (
        f"A pre-LN layer on 2 ranks, in two halves. {inside} Left and right of it all is whole: "
        "LayerNorm, bias, dropout and residual on all s tokens, alike on every rank. f copies into "
        "the lanes; g, an all-reduce, adds them up."
    )
