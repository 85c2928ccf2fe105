"""A pipeline's schedule over time, a row a rank, and below it what each rank holds meanwhile.

The drawing of arXiv:2104.04473, figures 3 and 4, and arXiv:2401.10241, figure 3. It takes a
Timeline, from `mm.simulate` or measured on ranks. Chunks of one rank are told apart by their height
in the row, as notes are on a stave: the first chunk is on top.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from minimegatron.figures.course import KINDS
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    HATCHES,
    INK,
    PAPER,
    POINTS_PER_PIXEL,
    SMALL,
    canvas,
    ink_on,
    patch,
    rank_colour,
    words,
)
from minimegatron.figures.widgets import PictureExplorer
from minimegatron.pipeline_parallel import schedules
from minimegatron.pipeline_parallel.schedule import Schedule
from minimegatron.pipeline_parallel.simulate import Timeline, simulate

LEFT, RIGHT, TOP = 78, 830, 122  # of the rows, in pixels
LETTER = SMALL / POINTS_PER_PIXEL  # the height of a line, in pixels
MOST = 4096  # actions: more are thinner than a line
SCHEDULES: dict[str, Callable[[int, int, int], Schedule]] = {
    "GPipe": lambda p, m, v: schedules.gpipe(p, m),
    "1F1B": lambda p, m, v: schedules.one_f_one_b(p, m),
    "interleaved": lambda p, m, v: schedules.interleaved(p, m, v),
    "ZB-H1": lambda p, m, v: schedules.zb_h1(p, m),
    "ZB-H2": lambda p, m, v: schedules.zb_h2(p, m),
    "ZB-V": lambda p, m, v: schedules.zbv(p, m),
}
"""Name -> the schedule for p ranks, m micro-batches, v chunks (1 or 2 where it has its own)."""


def schedule_chart(timeline: Timeline, title: str = "", measured: bool = False) -> Picture:
    """Who does what when, with the micro-batch's number where it fits; below, activations held.

    `measured` times differ from run to run: the words then tell the order alone. Raises ValueError
    for more than 4096 actions, of which nothing could be seen.
    """
    count = sum(map(len, timeline.starts))
    if not 0 < count <= MOST:
        raise ValueError(f"schedule_chart draws 1 to {MOST} actions, and this has {count}")
    p, v = timeline.schedule.p, timeline.schedule.v
    pitch = min(44.0 if v == 1 else 64.0, max(320 / p, 8))  # of a row above
    low = min(24.0, max(192 / p, 5))  # and of one below
    bottom = TOP + pitch * p
    title = title or _title(timeline)
    bubble = _bubble(timeline)
    with canvas(900, round(bottom + 80 + low * p)) as axes:
        words(axes, 10, 22, title, align="left", bold=True)
        words(axes, 10, 48, bubble, align="left", size=SMALL)
        _key(axes, timeline)
        _rows(axes, timeline, pitch)
        for x, text in ((LEFT, "0"), (RIGHT, f"{timeline.total_time:.4g}"), (450, "time")):
            words(axes, x, bottom + 12, text, size=SMALL)
        held = _held(timeline)
        words(axes, 10, bottom + 44, "Micro-batches in flight", align="left", bold=True, size=SMALL)
        words(axes, 896, bottom + 44, "at most", align="right", size=SMALL)
        _in_flight(axes, timeline, held, bottom + 58, low)
        most = ", ".join(f"rank {r} {max(y for _, y in steps):g}" for r, steps in enumerate(held))
        told = (
            f"{title}. {bubble} A row a rank over time: {_told(timeline)}. The whole takes "
            f"{timeline.total_time:.4g}, the work of the busiest rank {timeline.ideal_time:.4g}."
        )
        if measured:
            told = f"{title}, in seconds. A row a rank over time, in order: {_order(timeline)}."
        held_most = f"Below, the micro-batches whose activations a rank holds, at most: {most}."
        return Picture(axes, f"{told} {held_most}")


def _title(timeline: Timeline) -> str:
    s = timeline.schedule
    sizes = f"{s.p} ranks, {s.m} micro-batches"
    return f"{sizes}, {s.v} chunks a rank" if s.v > 1 else sizes


def _bubble(timeline: Timeline) -> str:
    told = f"Bubble: {timeline.bubble('ideal'):.1%} of the ideal time, "
    told += f"{timeline.bubble('total'):.1%} of the total time"
    alone = f"{timeline.bubble('ideal', ranks_meet=False):.1%}"
    differs = alone != f"{timeline.bubble('ideal'):.1%}"
    return f"{told}; {alone} if no rank waits for the others at the end." if differs else f"{told}."


def _told(timeline: Timeline) -> str:
    """When each rank starts and ends, and how much of that time it works."""
    begin = min(spans[0][1] for spans in timeline.spans)
    told = []
    for rank, spans in enumerate(timeline.spans):
        start, end = spans[0][1] - begin, spans[-1][2] - begin
        work = sum(stop - at for _, at, stop in spans)
        told.append(f"rank {rank} from {start:.4g} to {end:.4g}, at work for {work:.4g}")
    return "; ".join(told)


def _order(timeline: Timeline) -> str:
    ranks = enumerate(timeline.schedule.actions)
    return "; ".join(f"rank {rank} {' '.join(map(str, actions))}" for rank, actions in ranks)


def _key(axes: Axes, timeline: Timeline) -> None:
    kinds = {action.kind for spans in timeline.spans for action, _, _ in spans}
    left = LEFT
    for kind in (kind for kind in KINDS if kind in kinds):
        patch(axes, left, 68, 40, 26, hatch=HATCHES[kind])
        words(axes, left + 48, 81, KINDS[kind], align="left", size=SMALL)
        left += 75 + 9 * len(KINDS[kind])
    _idle(axes, [(left, 68, 40, 26)])
    words(axes, left + 48, 81, "idle", align="left", size=SMALL)
    if timeline.schedule.v > 1:
        words(axes, left + 100, 81, "highest: first chunk", align="left", size=SMALL)


def _rows(axes: Axes, timeline: Timeline, pitch: float) -> None:
    """The boxes of all ranks, those of one look together: much faster than one by one."""
    v, spans = timeline.schedule.v, timeline.spans
    begin = min(each[0][1] for each in spans)
    scale = (RIGHT - LEFT) / timeline.total_time
    high = (pitch - 4) * (1 if v == 1 else 0.6)  # of one box
    drop = (pitch - 4 - high) / max(v - 1, 1)  # from one chunk to the next
    _idle(axes, [(LEFT, TOP + pitch * rank, RIGHT - LEFT, pitch - 4) for rank in range(len(spans))])
    boxes: dict[tuple[str, str], list[Box]] = defaultdict(list)  # by ink and hatch
    fills: dict[tuple[str, str], list[str]] = defaultdict(list)
    labels: dict[str, list[Label]] = defaultdict(list)
    grounds: list[tuple[str, Box]] = []
    names: list[Label] = []
    for rank, each in enumerate(spans):
        colour, top = rank_colour(rank), TOP + pitch * rank
        if rank % math.ceil(LETTER / pitch) == 0:
            names.append((10, top + pitch / 2 - 2, f"rank {rank}"))
        for (kind, n, chunk), start, end in each:
            look = ink_on(colour), HATCHES[kind]
            x, y, wide = LEFT + scale * (start - begin), top + drop * chunk, scale * (end - start)
            boxes[look].append((x, y, wide, high))
            fills[look].append(colour)
            need = 0.64 * LETTER * len(str(n)) + 2
            # Enough of a hatch stays in sight around its number.
            fits = not look[1] or wide >= need + 10 or high >= 2 * LETTER - 6
            if wide >= need and high >= LETTER and fits:
                labels[look[0]].append((x + wide / 2, y + high / 2, str(n)))
                if look[1]:
                    ground = x + (wide - need) / 2, y + (high - 14) / 2, need, 14.0
                    grounds.append((colour, ground))
    every = [box for found in boxes.values() for box in found]
    colours = [colour for found in fills.values() for colour in found]
    _shape(axes, _corners(every), fc=colours, linewidth=0)
    for (ink, hatch), found in boxes.items():
        _shape(axes, [_outline(found)], fc="none", ec=ink, hatch=hatch, linewidth=0.8)
    if grounds:
        under = [colour for colour, _ in grounds]
        _shape(axes, _corners([ground for _, ground in grounds]), fc=under, linewidth=0)
    for ink, numbers in labels.items():
        _write(axes, numbers, ink)
    _write(axes, names, align=0)


Box = tuple[float, float, float, float]  # left, top, width, height
Label = tuple[float, float, str]  # where, and what is written there
Steps = list[tuple[float, float]]  # from this time on, that many


def _shape(axes: Axes, shapes: Any, **look: Any) -> None:
    """Shapes of one look. A hatch is fast on one Path of many boxes, slow on many boxes."""
    kind = PathCollection if isinstance(shapes[0], Path) else PolyCollection
    axes.add_collection(kind(shapes, **look), autolim=False)


def _corners(boxes: Sequence[Box]) -> np.ndarray:
    x, y, w, h = np.array(boxes).T
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]).transpose(2, 0, 1)


def _outline(boxes: Sequence[Box]) -> Path:
    """Many boxes as one Path."""
    return Path.make_compound_path_from_polys(_corners(boxes))


def _idle(axes: Axes, boxes: Sequence[Box]) -> None:
    _shape(axes, [_outline(boxes)], fc=PAPER, ec="#A0A0A0", hatch="..", linewidth=0.8)


@cache
def _glyph(text: str, align: float) -> Path:
    """The outline of a short text, in pixels, y downwards, around its middle or one of its ends."""
    path = TextPath((0, 0), text, size=LETTER, prop=FontProperties("DejaVu Sans"))
    box = path.get_extents()
    origin = [box.x0 + align * box.width, (box.y0 + box.y1) / 2]
    return Path((np.asarray(path.vertices) - origin) * [1, -1], path.codes)


def _write(axes: Axes, labels: Sequence[Label], ink: str = INK, align: float = 0.5) -> None:
    """All labels as one shape: as text, a hundred of them take longer than all the rest.

    `align`: where x lies in each, from 0 (its left end) to 1.
    """
    glyphs = [(x, y, _glyph(text, align)) for x, y, text in labels]
    vertices = [np.asarray(glyph.vertices) + [x, y] for x, y, glyph in glyphs]
    codes = [np.asarray(glyph.codes) for *_, glyph in glyphs]
    whole = Path(np.concatenate(vertices), np.concatenate(codes))
    _shape(axes, [whole], fc=ink, linewidth=0)


def _held(timeline: Timeline) -> list[Steps]:
    """For each rank, the times at which the number of micro-batches in flight changes."""
    held = []
    for rank, spans in enumerate(timeline.spans):
        # From the start of the forward to the end of B or W.
        when = [start if action.kind == "F" else end for action, start, end in spans]
        # Where a backward ends as a forward starts, the number stays what it was.
        held.append(list(dict(zip(when, timeline.schedule.in_flight(rank), strict=True)).items()))
    return held


def _in_flight(axes: Axes, timeline: Timeline, held: list[Steps], top: float, pitch: float) -> None:
    begin = min(spans[0][1] for spans in timeline.spans)
    scale = (RIGHT - LEFT) / timeline.total_time
    unit = (pitch - 4) / max(number for steps in held for _, number in steps)
    shapes, names, most = [], [], []
    for rank, steps in enumerate(held):
        floor = top + pitch * (rank + 1) - 3
        x = LEFT + scale * (np.repeat([at for at, _ in steps], 2) - begin)
        y = floor - unit * np.repeat([0, *(number for _, number in steps)], 2)[1:-1]
        shapes.append(np.column_stack([[LEFT, *x, RIGHT], [floor, *y, floor]]))
        if rank % math.ceil(LETTER / pitch) == 0:
            names.append((10, floor - pitch / 2 + 2, f"rank {rank}"))
            most.append((896, floor - pitch / 2 + 2, f"{max(n for _, n in steps):g}"))
    colours = [rank_colour(rank) for rank in range(len(held))]
    _shape(axes, shapes, fc=colours, ec=INK, linewidth=0.8)
    _write(axes, names, align=0)
    _write(axes, most, align=1)


def draw_schedule(schedule: str, p: int, m: int, v: int = 2, ratio: float = 2.0) -> Picture:
    """The chart of one of SCHEDULES with free messages; backward takes `ratio` times the forward.

    Where there is no such schedule the picture says why.
    """
    try:
        made = SCHEDULES[schedule](p, m, v)
    except ValueError as error:
        with canvas(900, 80) as axes:
            words(axes, 10, 40, f"No such schedule: {error}", align="left", size=SMALL)
            return Picture(axes, f"No picture: {error}.")
    timeline = simulate(made, input_grad=ratio / 2, weight_grad=ratio / 2)
    return schedule_chart(timeline, f"{schedule}: {_title(timeline)}")


def explore_schedule() -> PictureExplorer:
    """Sliders for the schedule, p, m, v and backward over forward, above the chart."""
    slider = ipywidgets.SelectionSlider
    return PictureExplorer(
        draw_schedule,
        schedule=slider(options=tuple(SCHEDULES), value="1F1B", description="schedule"),
        p=slider(options=(1, 2, 4, 8), value=4, description="ranks p"),
        m=slider(options=(1, 2, 4, 8, 16), value=8, description="micro-b. m"),
        v=slider(options=(1, 2, 3, 4), value=2, description="chunks v"),
        ratio=slider(options=(1.0, 1.5, 2.0, 3.0), value=2.0, description="back/forth"),
    )
