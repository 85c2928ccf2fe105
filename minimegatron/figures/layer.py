"""A transformer layer on its ranks: what is split, what every rank does alike, who drops what.

arXiv:1909.08053, figure 4; Megatron-LM's `TransformerLayer`. Each half of the layer is a row: from
f to g every rank has a lane of its own, everything else is drawn once and in the colour of what all
ranks hold alike. The residual runs above.
"""

from __future__ import annotations

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
HEADS, GAP, FIRST = 4, 24, 14


def transformer_layer(tp: int = 2, layer_norm: str = "pre", dropout: bool = False) -> Picture:
    """A layer with 4 heads on 2 or 4 ranks; with `dropout`, where it is and which stream draws it.

    `layer_norm` "pre" puts the LayerNorm before f, "post" behind the residual's sum.
    """
    if tp not in (2, 4):
        raise ValueError(f"this picture cuts 4 heads for 2 or 4 ranks, and tp is {tp}")
    if layer_norm not in ("pre", "post"):
        raise ValueError(f"layer_norm={layer_norm!r} is not 'pre' or 'post'")
    row = 100 + LANE * tp + (16 if dropout else 0)
    with canvas(900, 2 * row + 64) as axes:
        for half, names in enumerate((("X", "attention", "Z"), ("Z", "MLP", "Y"))):
            _half(axes, row * half, tp, *names, layer_norm == "pre", dropout)
        lines = (
            "Grey: whole. Every rank holds the same numbers and does the same work.",
            f"Colour: split. Each rank works on its own part. X, Z, Y are b × s × h, tp is {tp}.",
        )
        for line, text in enumerate(lines):
            words(axes, 450, 2 * row + 16 + 28 * line, text, size=SMALL)
        return Picture(axes, _alt(tp, layer_norm, dropout))


def _half(
    axes: Axes, top: float, tp: int, x: str, name: str, y: str, pre: bool, dropout: bool
) -> None:
    """One residual block, from left to right; `left` moves along."""
    lanes, middle, bottom = top + 76, top + 76 + LANE * tp / 2, top + 76 + LANE * tp
    inner = name == "attention" and dropout  # dropout inside the split region
    left: float = FIRST

    def block(label: str, width: float) -> None:
        nonlocal left
        patch(axes, left, middle - 22, width, 44, label, size=SMALL)
        left += width
        if label != y:
            arrow(axes, (left + 3, middle), (left + GAP - 3, middle))
        left += GAP

    def operator(letter: str, deed: str) -> None:
        nonlocal left
        words(axes, left + 17, top + 58, f"{letter}: {deed}", size=SMALL, bold=letter == "g")
        left += 34

    block(x, 40)
    if pre:
        block("LayerNorm", 96)
    operator("f", "copy")
    width = 327 if dropout else 427
    words(axes, left + width / 2, top + 22, name, bold=True)
    for rank in range(tp):
        at, high, middle_of = lanes + LANE * rank, LANE - 6, lanes + LANE * rank + LANE / 2 - 3
        arrow(axes, (left - 34, middle), (left - 4, middle_of))
        share = width - (92 if inner else 0)
        heads = [str(head) for head in range(HEADS)][rank * HEADS // tp : (rank + 1) * HEADS // tp]
        label = f"head{'s' * (len(heads) > 1)} {', '.join(heads)}"
        label += f": b × s × h/{tp}"
        if name == "MLP":
            label = f"{indexed('A', rank)}, GELU, {indexed('B', rank)}: b × s × 4h/{tp}"
        colour = rank_colour(rank)
        patch(axes, left, at, share, high, label, colour=colour, size=SMALL)
        if inner:
            patch(axes, left + share, at, 92, high, "weights'\ndropout", colour=colour, size=SMALL)
        arrow(axes, (left + width + 4, middle_of), (left + width + 34, middle))
    if inner:
        words(axes, left + width - 46, bottom + 10, "different", size=SMALL, bold=True)
    left += width
    operator("g", "add")
    left += 4
    block("+ bias", 64)
    if dropout:
        words(axes, left + 38, middle + 40, "same", size=SMALL, bold=True)
        block("dropout", 76)
    centre = left + 15
    block("+", 30)
    # The residual: up from X, along the top, down into the sum.
    start = FIRST + 20
    axes.plot([start, start, centre], [middle - 22, top + 40, top + 40], color=INK, linewidth=1.8)
    arrow(axes, (centre, top + 39), (centre, middle - 25))
    if not pre:
        block("LayerNorm", 96)
    block(y, 40)


def _alt(tp: int, layer_norm: str, dropout: bool) -> str:
    before, behind = "through a LayerNorm ", ""
    if layer_norm == "post":
        before, behind = "", ", and a LayerNorm follows the sum"
    streams = ""
    if dropout:
        streams = (
            " Dropout of the attention weights stands in the ranks' lanes and draws from the "
            "stream different; dropout behind each bias draws from the stream same."
        )
    return (
        f"A {layer_norm}-LN layer on {tp} ranks, in two halves. In each the input goes {before}to "
        f"f, which copies it into {tp} lanes, one a rank: {HEADS // tp} of {HEADS} heads in the "
        f"first half, b by s by h/{tp}, a part of the MLP in the second, b by s by 4h/{tp}. g adds "
        "the lanes' results; the bias is added, then the half's own input, which came past "
        f"everything as the residual{behind}. All but the lanes is whole, the same on every rank, "
        f"b by s by h.{streams}"
    )
