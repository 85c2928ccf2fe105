from __future__ import annotations

import time

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.style import EVERY_RANK, RANK_COLOURS


@pytest.mark.parametrize(("stage", "whole_kinds"), [(0, 3), (1, 2), (2, 1), (3, 0)])
def test_a_kind_is_grey_on_every_rank_until_its_stage_shards_it(
    stage: int, whole_kinds: int, drawn: list[Axes]
) -> None:
    figures.zero_shards(stage, dp=4)
    faces = [p.get_facecolor()[:3] for p in drawn[0].patches if p.get_facecolor()[3] > 0]
    seen = ["#" + "".join(f"{round(255 * c):02X}" for c in face) for face in faces]
    assert seen.count(EVERY_RANK) == 4 * whole_kinds
    for colour in RANK_COLOURS[:4]:
        assert (colour in seen) == (stage > 0)


def test_the_words_hold_the_bytes_together() -> None:
    said = [figures.zero_shards(stage, dp=4).alt for stage in range(4)]
    for words, together in zip(said, (16, 10, 7, 4), strict=True):
        assert f"Together {together} bytes" in words
    assert "gradients: all, AdamW's averages: its 1/4" in said[1]


def test_the_slider_draws_in_time() -> None:
    explorer = figures.explore_zero()
    seconds = []
    for stage, dp in ((3, 8), (2, 8), (0, 2), (1, 8), (3, 4)):
        explorer.controls["dp"].value = dp
        start = time.process_time()
        explorer.controls["stage"].value = stage
        seconds.append(time.process_time() - start)
        assert explorer.picture.value == figures.zero_shards(stage, dp).html()
    assert sorted(seconds)[2] < 0.2


@pytest.mark.parametrize("dp", [0, 9])
def test_too_many_ranks_are_refused(dp: int) -> None:
    with pytest.raises(ValueError, match="one to eight ranks"):
        figures.zero_shards(1, dp)
    with pytest.raises(ValueError, match="2 to 4 ranks"):
        figures.sharded_step(dp)
