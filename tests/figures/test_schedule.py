from __future__ import annotations

import base64
import time

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

import minimegatron as mm
from minimegatron import figures
from minimegatron.figures.schedule import LEFT, RIGHT, SCHEDULES, TOP
from minimegatron.figures.style import HATCHES, luminance, rank_colour

A = mm.Action


def fills(axes: Axes) -> list[tuple[str, float, float, float, float]]:
    """The boxes of the actions: colour, left, right, top, bottom."""
    boxes = next(
        c for c in axes.collections if isinstance(c, PolyCollection) and c.get_linewidth()[0] == 0
    )
    found = []
    for path, colour in zip(boxes.get_paths(), boxes.get_facecolor(), strict=True):
        extents = path.get_extents()
        found.append((to_hex(colour).upper(), extents.x0, extents.x1, extents.y0, extents.y1))
    return found


def test_each_action_is_a_box_of_its_rank_s_colour_as_long_as_it_takes(drawn: list[Axes]) -> None:
    timeline = mm.simulate(mm.one_f_one_b(2, 3), comm=0.5)
    figures.schedule_chart(timeline)
    scale = (RIGHT - LEFT) / timeline.total_time
    expected = sorted(
        (rank_colour(rank).upper(), LEFT + scale * start, LEFT + scale * end)
        for rank, spans in enumerate(timeline.spans)
        for _, start, end in spans
    )
    found = sorted((colour, left, right) for colour, left, right, _, _ in fills(drawn[0]))
    assert [each[0] for each in found] == [each[0] for each in expected]
    assert np.array([each[1:] for each in found]) == pytest.approx(
        np.array([each[1:] for each in expected]), abs=1e-6
    )


def test_every_kind_of_work_and_idle_has_a_hatch_and_a_key(drawn: list[Axes]) -> None:
    for made, kinds in ((mm.gpipe(2, 2), "FB"), (mm.zb_h1(2, 2), "FIW")):
        figures.schedule_chart(mm.simulate(made))
        hatches = {collection.get_hatch() for collection in drawn[-1].collections}
        assert {HATCHES[kind] for kind in kinds if HATCHES[kind]} | {".."} <= hatches
        told = [text.get_text() for text in drawn[-1].texts]
        names = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
        assert "idle" in told
        assert [name for kind, name in names.items() if name in told] == [names[k] for k in kinds]


def test_chunks_are_told_apart_by_height(drawn: list[Axes]) -> None:
    figures.schedule_chart(mm.simulate(mm.interleaved(2, 4, 3)))
    tops = {
        round(top - TOP, 3) for colour, _, _, top, _ in fills(drawn[0]) if colour == rank_colour(0)
    }
    assert len(tops) == 3 and min(tops) == 0
    figures.schedule_chart(mm.simulate(mm.gpipe(2, 4)))
    assert len({top for colour, _, _, top, _ in fills(drawn[1]) if colour == rank_colour(0)}) == 1


def test_the_words_are_computed_from_what_is_drawn() -> None:
    picture = figures.schedule_chart(mm.simulate(mm.one_f_one_b(2, 4)))
    assert "2 ranks, 4 micro-batches." in picture.alt
    assert "25.0% of the ideal time, 20.0% of the total time." in picture.alt
    assert "rank 0 from 0 to 15, at work for 12; rank 1 from 1 to 13, at work for 12" in picture.alt
    assert "at most: rank 0 2, rank 1 1" in picture.alt
    zero = figures.schedule_chart(mm.simulate(mm.zb_h2(2, 4))).alt
    assert "8.3% of the ideal time, 7.7% of the total time; 0.0% if no rank waits" in zero


def test_a_measured_timeline_is_drawn_from_its_own_start() -> None:
    made = mm.one_f_one_b(2, 1)
    starts, ends = [[10.0, 15.0], [11.5, 12.5]], [[11.0, 17.0], [12.5, 14.5]]
    picture = figures.schedule_chart(mm.Timeline(made, starts, ends), "measured, in ms")
    assert picture.alt.startswith("measured, in ms.")
    assert "rank 1 from 1.5 to 4.5, at work for 3" in picture.alt
    simulated = figures.schedule_chart(mm.simulate(made, comm=0.5), "measured, in ms")
    assert picture.alt == simulated.alt and picture.png == simulated.png


def test_too_many_actions_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match="draws 1 to 4096 actions, and this has 4104"):
        figures.schedule_chart(mm.simulate(mm.gpipe(1, 2052)))
    with pytest.raises(ValueError, match="this has 0"):
        figures.schedule_chart(mm.Timeline(mm.gpipe(1, 1), [[]], [[]]))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_drawn_or_says_why_not(name: str) -> None:
    assert f"{name}: 4 ranks, 8 micro-batches" in figures.draw_schedule(name, 4, 8).alt
    picture = figures.draw_schedule(name, 4, 2)
    refused = name in ("interleaved", "ZB-H1")
    assert picture.alt.startswith("No picture: ") == refused
    assert ("m=2" in picture.alt) == refused


def test_the_ratio_of_backward_to_forward_is_the_drawing_s() -> None:
    alt = figures.draw_schedule("GPipe", 2, 2, ratio=3.0).alt
    assert "at work for 8;" in alt  # 2 x (1 + 3)


def test_moving_a_slider_redraws_8_ranks_x_16_microbatches_in_time() -> None:
    explorer = figures.explore_schedule()
    explorer.controls["p"].value, explorer.controls["m"].value = 8, 16
    seconds = []
    for name in SCHEDULES:
        start = time.process_time()
        explorer.controls["schedule"].value = name
        seconds.append(time.process_time() - start)
        assert explorer.picture.value == figures.draw_schedule(name, 8, 16).html()
    assert sorted(seconds)[len(seconds) // 2] < 0.2


def test_without_a_kernel_the_first_schedule_remains() -> None:
    data, _ = figures.explore_schedule()._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == figures.draw_schedule("1F1B", 4, 8).png


def test_forward_backward_and_idle_differ_in_grey() -> None:
    """The patches of every rank stand out against idle, which is paper with dots."""
    for rank in range(8):
        assert (1 + 0.05) / (luminance(rank_colour(rank)) + 0.05) > 1.2


def test_the_words_of_a_measured_chart_are_the_same_at_every_run():
    schedule = mm.one_f_one_b(2, 2)
    runs = (mm.simulate(schedule, forward=f) for f in (1.0, 1.7))
    first, second = (figures.schedule_chart(run, "On ranks", measured=True).alt for run in runs)
    assert first == second and "rank 0 F0 F1 B0 B1; rank 1 F0 B0 F1 B1" in first
