from __future__ import annotations

import base64
import time

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minimegatron import figures
from minimegatron.figures.style import rank_colour

HEADS, HIDDEN = 4, 16


def labels_by_rank(axes: Axes, tp: int) -> list[list[str]]:
    """The words on the patches of each rank's colour, in the order of drawing."""
    found: list[list[str]] = [[] for _ in range(tp)]
    colours = [rank_colour(rank).lower() for rank in range(tp)]
    boxes = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_width() > 0]
    for text in axes.texts:
        x, y = text.get_position()
        for box in boxes:
            centre = box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2
            if centre == pytest.approx((x, y)) and to_hex(box.get_fc()) in colours:
                found[colours.index(to_hex(box.get_fc()))].append(plain(text.get_text()))
    return found


def plain(label: str) -> str:
    return label.translate({ord("₀") + digit: str(digit) for digit in range(10)})


def rows_by_torch(tp: int, blocks: int) -> list[list[str]]:
    """Which head's query, key or value each rank's rows are, from torch's own chunks."""
    names = [f"{kind}{head}" for kind in "qkv" for head in range(HEADS)]
    rows = torch.arange(3 * HIDDEN)
    held = [
        torch.cat([block.chunk(tp)[rank] for block in rows.chunk(blocks)]) for rank in range(tp)
    ]
    size = HIDDEN // HEADS
    return [[names[int(row) // size] for row in mine[::size]] for mine in held]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_each_rank_is_given_the_rows_that_torch_cuts(tp: int, drawn: list[Axes]) -> None:
    alt = figures.qkv_rows(tp).alt
    one_block, by_block = rows_by_torch(tp, 1), rows_by_torch(tp, 3)
    for rank, labels in enumerate(labels_by_rank(drawn[0], tp)):
        # Each way is drawn twice: in the whole weight, and as what the rank holds.
        assert sorted(" ".join(labels).split()) == sorted(2 * one_block[rank] + 2 * by_block[rank])
        for held in (one_block, by_block):
            assert f"rank {rank} holds {' '.join(held[rank])}, " in alt


def test_the_words_say_who_holds_whole_heads() -> None:
    wrong, right = figures.qkv_rows(2).alt.split("Right")
    assert wrong.count("no head") == 2
    assert "heads 0, 1" in right and "heads 2, 3" in right and "no head" not in right
    assert figures.qkv_rows(1).alt.count("heads 0, 1, 2, 3") == 2


@pytest.mark.parametrize("tp", [2, 4])
def test_a_head_stays_on_its_rank_from_query_to_sheet(tp: int, drawn: list[Axes]) -> None:
    figures.attention_heads(tp)
    for rank, labels in enumerate(labels_by_rank(drawn[0], tp)):
        mine = [h for h in range(HEADS) if h * tp // HEADS == rank]
        sheet = " + ".join(f"C{h}B{h}" for h in mine)
        assert labels == [f"{part}{h}" for h in mine for part in "qkvC"] + [sheet]


@pytest.mark.parametrize("tp", [2, 4])
def test_a_head_meets_its_own_rows_and_no_others(tp: int, drawn: list[Axes]) -> None:
    alt = figures.heads_to_sheets(tp).alt
    for rank, labels in enumerate(labels_by_rank(drawn[0], tp)):
        mine = [h for h in range(HEADS) if h * tp // HEADS == rank]
        assert labels == [f"{part}{h}" for h in mine for part in "CB"] + [
            " + ".join(f"C{h}B{h}" for h in mine)
        ]
    assert f"{HIDDEN // tp} of B's rows" in alt


@pytest.mark.parametrize(
    "draw", [figures.attention_heads, figures.qkv_rows, figures.heads_to_sheets]
)
def test_a_tp_that_shares_out_no_four_heads_is_refused(draw) -> None:
    for tp in (0, 3, 8):
        with pytest.raises(ValueError, match=f"not {tp}"):
            draw(tp)


def test_the_slider_draws_again_in_time_and_leaves_a_picture_without_a_kernel() -> None:
    explorer = figures.explore_qkv()
    data, _ = explorer._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == figures.qkv_rows(2).png
    seconds = []
    for tp in (4, 2, 4, 2, 4):
        start = time.process_time()
        explorer.controls["tp"].value = tp
        seconds.append(time.process_time() - start)
        assert explorer.picture.value == figures.qkv_rows(tp).html()
    assert min(seconds) < 0.2  # other work on the machine only ever slows it down
