from __future__ import annotations

import time

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.network import (
    even_size,
    pairwise_seconds,
    ring_seconds,
    size_name,
    spread,
    time_name,
)
from minimegatron.ranks.ledger import ring_bytes

TIMES = {64: 1e-4, 4096: 2e-4, 1 << 22: 5e-3}


@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_without_latency_a_ring_takes_the_ledgers_bytes_over_the_bandwidth(n: int) -> None:
    assert ring_seconds(1000, n, 0, 50) == pytest.approx(ring_bytes("all_reduce", 1000, n) / 50)
    assert ring_seconds(0, n, 3, 50) == pytest.approx(3 * 2 * (n - 1))
    assert 2 ** (pairwise_seconds(0, n, 1, 50)) == pytest.approx(n)


@pytest.mark.parametrize("n", [4, 8, 64])
def test_at_the_even_size_both_take_the_same_time(n: int) -> None:
    size = even_size(n, 5e-5, 1e9)
    assert size > 0
    assert ring_seconds(size, n, 5e-5, 1e9) == pytest.approx(pairwise_seconds(size, n, 5e-5, 1e9))
    below, above = size / 2, size * 2
    assert pairwise_seconds(below, n, 5e-5, 1e9) < ring_seconds(below, n, 5e-5, 1e9)
    assert pairwise_seconds(above, n, 5e-5, 1e9) > ring_seconds(above, n, 5e-5, 1e9)


def test_two_ranks_have_no_even_size() -> None:
    assert "Pairwise exchange is never slower" in figures.all_reduce_times(50, 1, 2).alt
    assert pairwise_seconds(1e9, 2, 5e-5, 1e9) < ring_seconds(1e9, 2, 5e-5, 1e9)


def test_what_is_measured_is_drawn_but_not_told(drawn: list[Axes]) -> None:
    other = {size: 3 * value for size, value in TIMES.items()}
    first = figures.times_over_sizes("Four ranks", {"model": TIMES}, {"ring": TIMES})
    second = figures.times_over_sizes("Four ranks", {"model": TIMES}, {"ring": other})
    assert first.alt == second.alt
    assert first.png != second.png
    assert "64 bytes to 4 MiB; lines for model and measured points for ring" in first.alt
    assert {"model", "ring"} <= {text.get_text() for text in drawn[0].texts}


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="one to four names"):
        figures.times_over_sizes("nothing", {})
    with pytest.raises(ValueError, match="one to four names"):
        figures.times_over_sizes("five", {str(i): TIMES for i in range(5)})
    with pytest.raises(ValueError, match="above zero"):
        figures.times_over_sizes("zero", {"ring": {1: 0.0, 2: 1.0}})


def test_labels_that_end_together_stand_apart_and_inside() -> None:
    placed = spread({"a": 95, "b": 96, "c": 99, "d": 10}, 20, 0, 100)
    heights = sorted(placed.values())
    assert [placed[name] for name in "dabc"] == heights
    assert heights[0] == 10 and heights[-1] <= 100
    assert min(y - x for x, y in zip(heights, heights[1:], strict=False)) >= 20


def test_sizes_and_times_have_short_names() -> None:
    assert [size_name(s) for s in (64, 1536, 1 << 22)] == ["64 bytes", "1.5 KiB", "4 MiB"]
    assert [time_name(t) for t in (1e-4, 0.01, 2.0)] == ["100 µs", "10 ms", "2 s"]


def test_the_sliders_draw_the_model_again_in_time() -> None:
    explorer = figures.explore_all_reduce()
    seconds = []
    for name, value in (("ranks", 64), ("latency", 1), ("GB/s", 450), ("ranks", 2), ("ranks", 8)):
        control = explorer.controls["bandwidth" if name == "GB/s" else name]
        start = time.process_time()
        control.value = value
        seconds.append(time.process_time() - start)
        now = {key: each.value for key, each in explorer.controls.items()}
        assert explorer.picture.value == figures.all_reduce_times(**now).html()
    assert sorted(seconds)[2] < 0.2
    assert explorer.first.alt == figures.all_reduce_times(50, 1, 4).alt
