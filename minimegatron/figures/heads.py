"""Attention cut by heads: who computes which head, and who holds which rows of the fused weight.

arXiv:1909.08053, section 3 and figure 3b; Megatron-LM's SelfAttention. In these pictures an index
is a head, and the colour says which rank holds it. q, k, v: query, key, value; C: what a head
makes; B: the rows of the output weight that take it.
"""

from __future__ import annotations

from itertools import groupby

import ipywidgets
from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    LARGE,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)
from minimegatron.figures.widgets import PictureExplorer

BATCH, SEQ, HIDDEN, HEADS = 2, 6, 16, 4  # the sizes in the pictures: those of lesson 06
SIZE = HIDDEN // HEADS
STRIP = 24  # height of one head's rows of the fused weight, in pixels
LANE = 48  # height of one head's lane


def attention_heads(tp: int = 2) -> Picture:
    """From X to Z: each rank makes query, key and value of its heads, attends, adds a sheet.

    Raises ValueError for a `tp` other than 2 and 4; so does heads_to_sheets.
    """
    _divides(tp, (2, 4))
    top, mine = 70, HEADS // tp
    middle = top + LANE * HEADS / 2
    with canvas(900, top + LANE * HEADS + 75) as axes:
        titles = {
            130: "f: copy",
            265: "QKV, columns",
            455: "attention",
            630: "out, rows",
            755: "g: add",
        }
        for x, title in titles.items():
            words(axes, x, 30, title, size=SMALL, bold=title == "g: add")
        patch(axes, 10, middle - 40, 80, 80, "X")
        patch(axes, 810, middle - 40, 80, 80, "Z")
        for rank in range(tp):
            colour, start = rank_colour(rank), top + LANE * mine * rank
            centre, height = start + LANE * mine / 2, LANE * mine - 8
            arrow(axes, (95, middle), (188, centre))
            for head in range(rank * mine, (rank + 1) * mine):
                y = top + LANE * head
                for i, kind in enumerate("qkv"):
                    patch(axes, 195 + 48 * i, y, 44, LANE - 8, indexed(kind, head), colour=colour)
                arrow(axes, (340, y + LANE / 2 - 4), (382, y + LANE / 2 - 4))
                patch(axes, 388, y, 134, LANE - 8, indexed("C", head), colour=colour)
                arrow(axes, (527, y + LANE / 2 - 4), (562, y + LANE / 2 - 4))
            patch(axes, 568, start, 124, height, _product(rank, tp), colour=colour, size=SMALL)
            arrow(axes, (697, centre - 4), (804, middle))
        whole, part = f"{BATCH} × {SEQ} × {HIDDEN}", f"each {BATCH} × {SEQ} × {SIZE}"
        sizes = {50: whole, 265: part, 455: part, 630: f"each {whole}", 850: whole}
        for x, size in sizes.items():
            words(axes, x, top + LANE * HEADS + 14, size, size=SMALL)
        words(axes, 450, top + LANE * HEADS + 50, "The index is the head, the colour the rank.")
        who = "; ".join(f"rank {rank} has {_heads(rank, tp)}" for rank in range(tp))
        return Picture(
            axes,
            f"Attention with {HEADS} heads on {tp} ranks: {who}. f copies X to every rank. A rank "
            "makes query, key and value of its own heads from its columns of the QKV weight, "
            "attends within each head alone, and multiplies what its heads make by its rows of the "
            f"output weight: a sheet as large as X, {whole}. g adds the sheets to Z.",
        )


def qkv_rows(tp: int = 2) -> Picture:
    """The 3h rows of the fused weight by rank: cut as one block, and cut block by block.

    Raises ValueError for a `tp` other than 1, 2 and 4.
    """
    _divides(tp, (1, 2, 4))
    with canvas(900, 445) as axes:
        spoken = []
        for left, title, blocks in (
            (15, "Wrong: as one block", 1),
            (465, "Right: block by block", 3),
        ):
            if tp == 1:
                title = title.partition(": ")[2].capitalize()
            held = _held(tp, blocks)
            _cut(axes, left, title, held)
            each = [
                f"rank {rank} holds {' '.join(strips)}, {_whole_heads(strips)}"
                for rank, strips in enumerate(held)
            ]
            spoken.append(f"{title.replace(':', ',')}: {'; '.join(each)}.")
        words(
            axes, 450, 422,
            f"The index is the head, the colour the rank. Each of {indexed('q', 0)} to "
            f"{indexed('v', HEADS - 1)} is {SIZE} of the {3 * HIDDEN} rows of {HIDDEN} numbers.",
            size=SMALL,
        )  # fmt: skip
        return Picture(
            axes,
            f"The {3 * HIDDEN} rows of the QKV weight, {SIZE} for each of {3 * HEADS} names, on "
            f"{tp} rank{'s' if tp > 1 else ''}, two ways. {' '.join(spoken)}",
        )


def explore_qkv() -> PictureExplorer:
    """A slider for tp above the picture of the fused weight's rows."""
    return PictureExplorer(
        qkv_rows, tp=ipywidgets.SelectionSlider(options=(1, 2, 4), value=2, description="tp")
    )


def heads_to_sheets(tp: int = 2) -> Picture:
    """The output projection: heads times their rows of B, one sheet a rank, and their sum."""
    _divides(tp, (2, 4))
    middle, side, rows = 165, 168, 100
    with canvas(900, 355) as axes:
        words(axes, 104, 35, "C, by heads")
        words(axes, 209, middle, "×", size=LARGE)
        words(axes, 314, 35, "B, by rows")
        words(axes, 419, middle, "=", size=LARGE)
        words(axes, 522, 35, "one sheet a rank")
        for head in range(HEADS):
            colour, step = rank_colour(head * tp // HEADS), side / HEADS
            left, top = 20 + head * step, middle - side / 2 + head * step
            patch(axes, left, middle - rows / 2, step, rows, indexed("C", head), colour=colour)
            patch(axes, 230, top, side, step, indexed("B", head), colour=colour)
        height = 200 / tp
        for rank in range(tp):
            top = middle - 100 + rank * height
            label, colour = _product(rank, tp), rank_colour(rank)
            patch(axes, 438, top, side, height - 8, label, colour=colour, size=SMALL)
        words(axes, 666, middle - 22, "all-reduce", size=SMALL, bold=True)
        words(axes, 666, middle + 20, "adds", size=SMALL)
        arrow(axes, (618, middle), (714, middle))
        words(axes, 805, 35, "Z, on every rank")
        patch(axes, 721, middle - rows / 2, side, rows, "Z", size=LARGE)
        tokens, held = BATCH * SEQ, HIDDEN // tp
        sizes = {
            104: f"each {tokens} × {SIZE}",
            314: f"each {SIZE} × {HIDDEN}",
            522: f"each {tokens} × {HIDDEN}",
            805: f"{tokens} × {HIDDEN}",
        }
        for x, size in sizes.items():
            words(axes, x, 290, size)
        words(axes, 450, 332, "The index is the head, the colour the rank. No head is sent.")
        return Picture(
            axes,
            f"C, the {HEADS} heads side by side, times B, cut into {HEADS} groups of rows. Each "
            f"head meets its own rows only: C_0 those of B_0, and so on. A rank holds {held} of "
            f"C's columns and {held} of B's rows, and makes one sheet, {tokens} × {HIDDEN}; an "
            f"all-reduce adds the {tp} sheets to Z. No head is sent.",
        )


def _divides(tp: int, drawn: tuple[int, ...]) -> None:
    if tp not in drawn:
        raise ValueError(f"this picture shares out {HEADS} heads: tp is one of {drawn}, not {tp}")


def _held(tp: int, blocks: int) -> list[list[str]]:
    """The strips of the fused weight that each rank holds, in its order."""
    names = [f"{kind}{head}" for kind in "qkv" for head in range(HEADS)]
    block, part = len(names) // blocks, len(names) // blocks // tp
    return [
        [names[b * block + rank * part + i] for b in range(blocks) for i in range(part)]
        for rank in range(tp)
    ]


def _whole_heads(strips: list[str]) -> str:
    """The heads of which query, key and value are all there, in words."""
    heads = [str(head) for head in range(HEADS) if {f"{kind}{head}" for kind in "qkv"} <= {*strips}]
    return f"head{'s' if len(heads) > 1 else ''} {', '.join(heads)}" if heads else "no head"


def _heads(rank: int, tp: int) -> str:
    mine = range(rank * HEADS // tp, (rank + 1) * HEADS // tp)
    return f"head{'s' if len(mine) > 1 else ''} {', '.join(map(str, mine))}"


def _product(rank: int, tp: int) -> str:
    """What the sheet of a rank is the sum of."""
    mine = range(rank * HEADS // tp, (rank + 1) * HEADS // tp)
    return " + ".join(indexed("C", head) + indexed("B", head) for head in mine)


def _cut(axes: Axes, left: float, title: str, held: list[list[str]]) -> None:
    """One way to cut: the whole weight on the left, then a column of strips for each rank."""
    tp, top = len(held), 78.0
    owner = {strip: rank for rank, strips in enumerate(held) for strip in strips}
    words(axes, left + 210, 22, title, bold=True)
    words(axes, left + 48, 54, "the weight", size=SMALL)
    for block, kind in enumerate("qkv"):
        y = top + (STRIP * HEADS + 10) * block  # a gap between queries, keys and values
        strips = [f"{kind}{head}" for head in range(HEADS)]
        for rank, mine in groupby(strips, key=lambda strip: owner[strip]):
            y = _strips(axes, left, y, 96, list(mine), rank)
    arrow(axes, (left + 101, top + 154), (left + 127, top + 154))
    step = 304 / tp
    for rank, strips in enumerate(held):
        x, width, y = left + 132 + step * rank, min(step - 7, 120), top
        words(axes, x + width / 2, 54, f"rank {rank}", size=SMALL)
        for _, mine in groupby(strips, key=lambda strip: strip[0]):
            y = _strips(axes, x, y, width, list(mine), rank)
        words(axes, x + width / 2, y + 18, _whole_heads(strips), size=SMALL)


def _strips(
    axes: Axes, left: float, top: float, width: float, strips: list[str], rank: int
) -> float:
    """Neighbours of one kind as one patch (each label takes time to draw); its lower edge."""
    label = " ".join(indexed(strip[0], int(strip[1:])) for strip in strips)
    height, colour = STRIP * len(strips), rank_colour(rank)
    patch(axes, left, top, width, height, label, colour=colour, size=SMALL)
    return top + height
