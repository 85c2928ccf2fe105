"""What a message costs: a latency for each one, and its bytes over the bandwidth.

A message of S bytes takes a + S/B seconds. A ring all-reduce sends 2(n-1) pieces of S/n bytes one
after another, pairwise exchange log2(n) whole tensors: few messages win while the latency counts,
few bytes win once they do. The model is Hockney's; Megatron-LM leaves the choice to NCCL, whose
tree and ring it describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ipywidgets
from matplotlib.axes import Axes

from minimegatron.analysis.network import Link, collective_seconds
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import INK, PAPER, SMALL, canvas, patch, words
from minimegatron.figures.widgets import PictureExplorer

LEFT, RIGHT, TOP, BOTTOM = 90, 640, 60, 330  # of the frame, in pixels
DASHES = ("-", (0, (6, 3)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
MARKS = ("o", "s", "^", "D")
LOOK: dict[str, Any] = {
    "color": INK, "linewidth": 2, "markersize": 8, "markerfacecolor": PAPER, "clip_on": False,
}  # fmt: skip
UNITS = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
SIZES = tuple(2**k for k in range(8, 31))  # of the slider: 256 bytes to a gibibyte
Times = Mapping[int, float]  # bytes -> seconds


def ring_seconds(size: float, n: int, latency: float, bandwidth: float) -> float:
    """A ring all-reduce of `size` bytes on n ranks; seconds, and bytes a second."""
    return collective_seconds("all_reduce", size, n, Link(latency, bandwidth))


def pairwise_seconds(size: float, n: int, latency: float, bandwidth: float) -> float:
    """Pairwise exchange of `size` bytes on n ranks, a power of two; seconds, bytes a second."""
    return math.log2(n) * (latency + size / bandwidth)


def even_size(n: int, latency: float, bandwidth: float) -> float:
    """The bytes at which both take the same time; 0 or less where pairwise exchange always wins."""
    messages, shares = 2 * (n - 1) - math.log2(n), math.log2(n) - 2 * (n - 1) / n
    return messages * latency * bandwidth / shares if shares else 0.0


def times_over_sizes(
    title: str, lines: Mapping[str, Times], measured: Mapping[str, Times] | None = None
) -> Picture:
    """Seconds over bytes, both axes logarithmic: lines, and marks for what was measured.

    A mark has its name and the shape of its place in `measured`. What the picture says in words
    holds no seconds, for they differ from machine to machine and from run to run.

    Raises ValueError for nothing to draw, more than four names of a kind, or times not above zero.
    """
    marks = measured or {}
    every = [times for group in (lines, marks) for times in group.values()]
    if not every or max(len(lines), len(marks)) > 4 or min(map(len, every)) < 2:
        raise ValueError("times_over_sizes draws one to four names, of two sizes or more each")
    if min(min(times.values()) for times in every) <= 0:
        raise ValueError("times_over_sizes draws times above zero")
    with canvas(900, 400) as axes:
        _draw(axes, title, lines, marks)
        sizes = sorted({size for times in every for size in times})
        parts = [f"lines for {', '.join(lines)}"] if lines else []
        parts += [f"measured points for {', '.join(marks)}"] if marks else []
        return Picture(
            axes,
            f"{title}: seconds over bytes, from {size_name(sizes[0])} to {size_name(sizes[-1])}; "
            f"{' and '.join(parts)}. The times differ from machine to machine.",
        )


def _draw(axes: Axes, title: str, lines: Mapping[str, Times], marks: Mapping[str, Times]) -> None:
    every = [times for group in (lines, marks) for times in group.values()]
    sizes = sorted({size for times in every for size in times})
    seconds = [value for times in every for value in times.values()]
    low = math.floor(math.log10(min(seconds)))
    high = max(math.ceil(math.log10(max(seconds))), low + 1)

    def across(size: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log2(size / sizes[0]) / math.log2(sizes[-1] / sizes[0])

    def down(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log10(value) - low) / (high - low)

    words(axes, LEFT, 28, title, align="left", bold=True)
    patch(axes, LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, colour=PAPER)
    for power in range(low, high + 1, max(1, (high - low) // 6)):
        y = down(10.0**power)
        axes.plot((LEFT, RIGHT), (y, y), color=INK, linewidth=0.4, alpha=0.4)
        words(axes, LEFT - 10, y, time_name(10.0**power), align="right", size=SMALL)
    for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]):
        axes.plot((across(size),) * 2, (BOTTOM, BOTTOM + 6), color=INK, linewidth=1)
        words(axes, across(size), BOTTOM + 24, size_name(size), size=SMALL)
    styles: dict[str, dict[str, Any]] = {}  # of each name: dashes for a line, a shape for marks
    ends: dict[str, float] = {}
    for group, shapes, key in ((marks, MARKS, "marker"), (lines, DASHES, "linestyle")):
        for (name, times), shape in zip(group.items(), shapes, strict=False):
            # Marks without a line of their own are joined by dots, so that the eye can follow.
            plain: dict[str, Any] = {"linestyle": "" if name in lines else ":"}
            plain[key] = shape
            points = sorted(times.items())
            xs, ys = [across(size) for size, _ in points], [down(value) for _, value in points]
            axes.plot(xs, ys, **LOOK, **plain)
            styles[name] = styles.get(name, {}) | plain
            ends[name] = ys[-1]
    for name, y in spread(ends, 24, TOP + 10, BOTTOM - 10).items():
        sample = (RIGHT + 14, RIGHT + 31, RIGHT + 48)
        axes.plot(sample, (y, y, y), markevery=[1], **LOOK, **styles[name])
        words(axes, RIGHT + 60, y, name, align="left", size=SMALL)


def spread(
    heights: Mapping[str, float], apart: float, top: float, bottom: float
) -> dict[str, float]:
    """The heights from the top down, moved so that they stand `apart` and all stay inside."""
    order = sorted(heights, key=lambda name: heights[name])
    placed = [max(heights[name], top) for name in order]
    for i, _ in enumerate(placed[1:], 1):
        placed[i] = max(placed[i], placed[i - 1] + apart)
    limit = bottom
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - apart
    return dict(zip(order, placed, strict=True))


def all_reduce_times(latency: float, bandwidth: float, ranks: int) -> Picture:
    """Ring against pairwise exchange over the size, as the model has it.

    Args:
        latency: microseconds a message.
        bandwidth: gigabytes (10^9 bytes) a second.
        ranks: a power of two.
    """
    a, b = latency * 1e-6, bandwidth * 1e9
    lines = {
        "ring": {size: ring_seconds(size, ranks, a, b) for size in SIZES},
        "pairwise": {size: pairwise_seconds(size, ranks, a, b) for size in SIZES},
    }
    even = even_size(ranks, a, b)
    verdict = (
        f"Pairwise exchange is faster below {size_name(even)}, the ring above"
        if even > 0
        else "Pairwise exchange is never slower"
    )
    title = f"{ranks} ranks, {latency:g} µs a message, {bandwidth:g} GB/s"
    with canvas(900, 420) as axes:
        _draw(axes, title, lines, {})
        words(axes, LEFT, BOTTOM + 62, f"{verdict}.", align="left", size=SMALL)
        return Picture(axes, f"Time of an all-reduce over its bytes, computed for {title}: lines "
                       f"for ring and pairwise exchange. {verdict}.")  # fmt: skip


def explore_all_reduce() -> PictureExplorer:
    """Sliders for latency, bandwidth and ranks above the times of ring and pairwise exchange."""
    return PictureExplorer(
        all_reduce_times,
        latency=ipywidgets.SelectionSlider(
            options=(1, 2, 5, 10, 20, 50, 100, 200), value=50, description="latency, µs"
        ),
        bandwidth=ipywidgets.SelectionSlider(
            options=(0.1, 1, 10, 50, 100, 450), value=1, description="GB/s"
        ),
        ranks=ipywidgets.SelectionSlider(options=(2, 4, 8, 16, 64), value=4, description="ranks"),
    )


def size_name(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    power = min(int(math.log2(size)) // 10, 3) if size >= 1 else 0
    return f"{float(f'{size / 1024**power:.3g}'):g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def time_name(seconds: float) -> str:
    """0.0001 -> "100 µs"."""
    scale, unit = next((each for each in UNITS if seconds >= each[0] * 0.999), UNITS[-1])
    return f"{seconds / scale:.3g} {unit}"
