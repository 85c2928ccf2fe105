"""Work and messages on the ledger's clock: which message travels under which work.

Each rank has a lane for the work that `mm.span` named, with the times in which the rank stood
waiting, and a lane for its messages, from their start to their arrival. What Nsight Systems shows
of a Megatron-LM run: compute streams above, NCCL's stream below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import ipywidgets
from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    HATCHES,
    INK,
    PAPER,
    SMALL,
    canvas,
    patch,
    rank_colour,
    words,
)
from minimegatron.figures.widgets import PictureExplorer
from minimegatron.ranks.ledger import Ledger, Record, Span

LEFT, RIGHT, WORK, MESSAGE, GAP = 150, 870, 38, 26, 10  # pixels
LETTER = 10.2  # pixels: no letter of the small size is wider on average
WAITS = "waits"
WORDS = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "": WAITS}
KINDS = {name: kind for kind, name in WORDS.items()}
TICKS = tuple(unit * 10**power for power in range(-6, 3) for unit in (1, 2, 5))


def overlap_timeline(runs: Mapping[str, Sequence[Ledger]]) -> Picture:
    """One panel a run, its ranks' ledgers below one another, all panels to one scale of time.

    What the picture says in words is the order of events on the first rank: times differ from run
    to run. Raises ValueError for a run without a message that was waited for.
    """
    for title, logs in runs.items():
        if not logs or not all(_finished(log) for log in logs):
            raise ValueError(f"{title}: give the ledgers of its ranks, each with a message or more")
    rows = {title: [_rows(_finished(log)) for log in logs] for title, logs in runs.items()}
    lanes = [sum(WORK + MESSAGE * max(rs) + 2 * GAP for rs in rows[title]) for title in runs]
    first = {title: min(map(_begin, logs)) for title, logs in runs.items()}
    span = max(_end(log) - first[t] for t, logs in runs.items() for log in logs)
    with canvas(900, round(sum(lanes) + 44 * len(runs) + 84)) as axes:
        scale, top = (RIGHT - LEFT) / span, 24.0
        for title, logs in runs.items():
            share = sum(log.hidden() for log in logs) / len(logs)
            words(axes, 20, top, title, align="left", bold=True)
            told = f"{share:.0%} of the messages' time hidden"
            words(axes, RIGHT, top, told, align="right", size=SMALL)
            top += 20
            for number, log in enumerate(logs):
                _draw_rank(axes, top, number, log, rows[title][number], scale, first[title])
                top += WORK + MESSAGE * max(rows[title][number]) + 2 * GAP
            top += 24
        _ruler(axes, top - 14, span, scale)
        _key(axes, top + 42, [log for logs in runs.values() for log in logs])
        told = "; ".join(f"{title}: {_told(logs)}" for title, logs in runs.items())
        return Picture(
            axes,
            "Lanes of work, and of messages below it, over time, for each rank. In order, on rank "
            f"0: {told}.",
        )


def _finished(log: Ledger) -> list[Record]:
    return [r for r in log.records if r.done is not None and r.waited is not None]


def _begin(log: Ledger) -> float:
    return min([r.posted for r in _finished(log)] + [s.begin for s in log.spans])


def _end(log: Ledger) -> float:
    ends = [max(r.done or 0.0, r.waited or 0.0) for r in _finished(log)]
    return max(ends + [s.end for s in log.spans])


def _rows(records: Sequence[Record]) -> list[int]:
    """The row, from 1 down, of each message: two under way at once stand below one another."""
    free: list[float] = []
    rows = []
    for r in records:
        row = next((i for i, end in enumerate(free) if end <= r.posted), len(free))
        free[row : row + 1] = [r.done or 0.0]
        rows.append(row + 1)
    return rows


def _innermost(spans: Sequence[Span]) -> list[Span]:
    """The spans cut where others lie inside them."""
    cuts = sorted({t for s in spans for t in (s.begin, s.end)})
    parts: list[Span] = []
    for begin, end in pairwise(cuts):
        over = [s for s in spans if s.begin <= begin and end <= s.end]
        if over:
            s = min(over, key=lambda s: s.end - s.begin)
            parts.append(Span(s.name, s.phase, begin, end))
    return parts


def _draw_rank(
    axes: Axes, top: float, rank: int, log: Ledger, rows: list[int], scale: float, zero: float
) -> None:
    def box(begin: float, end: float, y: float, height: float, name: str, **look: str) -> None:
        width = scale * (end - begin)
        label = name if width > LETTER * len(name) + 8 else ""
        patch(axes, LEFT + scale * (begin - zero), y, width, height, label, size=SMALL, **look)

    words(axes, 20, top + WORK / 2, f"rank {rank}: work", align="left", size=SMALL)
    y = top + WORK + GAP / 2
    words(axes, LEFT - 10, y + MESSAGE / 2, "messages", align="right", size=SMALL)
    for s in _innermost([*log.spans, *_waits(log)]):
        colour = PAPER if s.name == WAITS else rank_colour(rank)
        box(s.begin, s.end, top, WORK, s.name, colour=colour, hatch=HATCHES.get(_kind(s), ""))
    for r, row in zip(_finished(log), rows, strict=True):
        end = r.done or 0.0
        box(r.posted, end, y + MESSAGE * (row - 1), MESSAGE - 4, r.op.replace("_", "-"))


def _waits(log: Ledger) -> list[Span]:
    times = [(r.waited or 0.0, r.done or 0.0) for r in _finished(log)]
    return [Span(WAITS, "forward", begin, end) for begin, end in times if begin < end]


def _kind(span: Span) -> str:
    return KINDS.get(span.name, "F" if span.phase == "forward" else "B")


def _ruler(axes: Axes, y: float, span: float, scale: float) -> None:
    step = next(tick for tick in TICKS if tick >= span / 8)
    unit, name = (1e-3, "ms") if span < 2 else (1.0, "s")
    axes.plot([LEFT, RIGHT], [y, y], color=INK, linewidth=1)
    for i in range(int(span / step) + 1):
        x = LEFT + scale * step * i
        axes.plot([x, x], [y, y + 6], color=INK, linewidth=1)
        words(axes, x, y + 20, f"{i * step / unit:g}", size=SMALL)
    words(axes, LEFT - 20, y + 20, name, align="right", size=SMALL)


def _key(axes: Axes, y: float, logs: Sequence[Ledger]) -> None:
    """What the hatches that were used mean."""
    used = {_kind(s) for log in logs for s in log.spans}
    x = LEFT + 0.0
    for kind, name in WORDS.items():
        if kind in used or name == WAITS:
            colour = PAPER if name == WAITS else EVERY_RANK
            patch(axes, x, y - 10, 34, 20, colour=colour, hatch=HATCHES.get(kind, ""))
            words(axes, x + 42, y, name, align="left", size=SMALL)
            x += 62 + LETTER * len(name)


def _told(logs: Sequence[Ledger]) -> str:
    """The events of the first rank in their order, equal ones in a row counted."""
    events: list[tuple[float, str]] = []
    for r in _finished(logs[0]):
        assert r.waited is not None
        op = r.op.replace("_", "-")
        if r.waited == r.posted:
            events.append((r.posted, f"{op} sent and waited for"))
        else:
            events += [(r.posted, f"{op} started"), (r.waited, f"{op} waited for")]
    events += [(s.begin, s.name) for s in logs[0].spans]
    told: list[tuple[str, int]] = []
    for _, name in sorted(events, key=lambda event: event[0]):
        if told and told[-1][0] == name:
            told[-1] = (name, told[-1][1] + 1)
        else:
            told.append((name, 1))
    return ", ".join(name if n == 1 else f"{name} {n} times" for name, n in told)


def chunk_ledger(product: float, message: float, latency: float, chunks: int) -> Ledger:
    """What a row layer's forward in `chunks` parts should look like; all times in seconds.

    `message` is what the bytes of the whole all-reduce take, `latency` what each part adds.
    """
    log, free = Ledger(), 0.0
    for i in range(chunks):
        end = product * (i + 1) / chunks
        log.spans.append(Span("product", "forward", product * i / chunks, end))
        free = max(free, end) + latency + message / chunks
        waited = product if i == 0 else max(product, log.records[-1].done or 0.0)
        log.records.append(Record("all_reduce", "tp", 2, "forward", 0, 0.0, "", end, waited, free))
    return log


def chunks_modelled(message: float, latency: float, chunks: int) -> Picture:
    """The whole product and message above the same in chunks: product 10 ms, the others in ms."""
    times = {k: chunk_ledger(0.010, message / 1e3, latency / 1e3, k) for k in (1, chunks)}
    ends = {k: _end(log) for k, log in times.items()}
    title = f"{chunks} chunks: {ends[chunks] / ends[1]:.0%} of the time"
    return overlap_timeline({"whole": [times[1]], title: [times[chunks]]})


def explore_chunks() -> PictureExplorer:
    """Sliders for chunks, the message's time and its latency above the cost model's timeline."""
    return PictureExplorer(
        chunks_modelled,
        message=ipywidgets.SelectionSlider(
            options=(1, 2, 5, 10, 20), value=5, description="bytes, ms"
        ),
        latency=ipywidgets.SelectionSlider(
            options=(0, 0.1, 0.5, 1, 2), value=0.1, description="latency, ms"
        ),
        chunks=ipywidgets.SelectionSlider(options=(2, 4, 8, 16), value=4, description="chunks"),
    )
