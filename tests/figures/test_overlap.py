from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minimegatron import figures
from minimegatron.figures.overlap import chunk_ledger
from minimegatron.ranks.ledger import Ledger, Record, Span


def log(later: float = 0.0, waited: float = 0.3) -> Ledger:
    """An input gradient, its message, and a weight gradient meanwhile, one tenth of a second each.

    Waiting begins at `waited`; everything is `later` by so much.
    """
    times = [t + later for t in (0.1, 0.2, 0.3, 0.4)]
    spans = [
        Span("input gradient", "backward", *times[:2]),
        Span("weight gradient", "backward", *times[1:3]),
    ]
    message = ("all_reduce", "tp", 2, "backward", 8, 8.0, "", times[1], waited + later, times[3])
    return Ledger([Record(*message)], spans)


def boxes(axes: Axes, top: float) -> list[tuple[float, float]]:
    """Left edge and width of the boxes that begin at this height."""
    outlined = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_linewidth()]
    return [(p.get_x(), p.get_width()) for p in outlined if p.get_y() == pytest.approx(top)]


def test_work_waits_and_messages_stand_where_the_clock_has_them(drawn: list[Axes]) -> None:
    picture = figures.overlap_timeline({"backward": [log()]})
    (axes,) = drawn
    third = 720 / 3
    work, messages = boxes(axes, 44), boxes(axes, 44 + 38 + 5)
    assert [x for x, _ in work] == pytest.approx([150, 150 + third, 150 + 2 * third])
    assert messages == [pytest.approx((150 + third, 2 * third))]
    texts = {t.get_text() for t in axes.texts}
    assert {"input gradient", "weight gradient", "waits", "all-reduce"} <= texts
    assert "50% of the messages' time hidden" in texts
    assert "input gradient, all-reduce started, weight gradient, all-reduce waited" in picture.alt


def test_the_ranks_share_one_clock(drawn: list[Axes]) -> None:
    figures.overlap_timeline({"backward": [log(), log(later=0.1)]})
    (axes,) = drawn
    quarter, second = 720 / 4, 44 + 38 + 26 + 20
    assert boxes(axes, 44)[0][0] == pytest.approx(150)
    assert boxes(axes, second)[0][0] == pytest.approx(150 + quarter)


def test_all_panels_have_one_scale_and_a_blocking_message_is_waited_for(drawn: list[Axes]) -> None:
    runs = {"later": [log(waited=0.3)], "at once": [log(waited=0.2)]}
    picture = figures.overlap_timeline(runs)
    (axes,) = drawn
    first, second = boxes(axes, 44), boxes(axes, 44 + 38 + 26 + 20 + 24 + 20)
    assert second[0] == pytest.approx(first[0])
    assert "at once: input gradient, all-reduce sent and waited for, weight" in picture.alt
    assert "0% of the messages' time hidden" in {t.get_text() for t in axes.texts}


def test_messages_under_way_together_stand_below_one_another(drawn: list[Axes]) -> None:
    both = log()
    both.records.append(Record("all_gather", "tp", 2, "backward", 8, 8.0, "", 0.25, 0.4, 0.45))
    figures.overlap_timeline({"two": [both]})
    (axes,) = drawn
    assert len(boxes(axes, 87)) == len(boxes(axes, 87 + 26)) == 1


def test_work_inside_work_is_drawn_on_it(drawn: list[Axes]) -> None:
    nested = log(waited=0.4)
    nested.spans.append(Span("backward", "forward", 0.0, 0.5))  # named from outside autograd
    figures.overlap_timeline({"nested": [nested]})
    (axes,) = drawn
    assert [width for _, width in boxes(axes, 44)] == pytest.approx(
        [144, 144, 144, 288]  # backward, input gradient, weight gradient, backward again
    )


def test_the_words_are_the_same_whatever_the_times() -> None:
    slow = log()
    slow.records[0].done = 9.0
    same = [figures.overlap_timeline({"run": [one]}).alt for one in (log(), slow)]
    assert same[0] == same[1]


def test_a_run_without_a_message_that_was_waited_for_is_refused() -> None:
    unfinished = Record("all_reduce", "tp", 2, "forward", 8, 8.0, "", 0.1)
    for logs in ([], [Ledger()], [Ledger([unfinished])]):
        with pytest.raises(ValueError, match="run: give the ledgers"):
            figures.overlap_timeline({"run": logs})


@pytest.mark.parametrize("chunks", [1, 2, 8])
@pytest.mark.parametrize(("product", "message", "latency"), [(10, 5, 0.1), (10, 20, 1), (10, 1, 2)])
def test_the_model_of_chunks_ends_when_the_slower_of_work_and_network_does(
    chunks: int, product: float, message: float, latency: float
) -> None:
    times = chunk_ledger(product, message, latency, chunks)
    part, sent = product / chunks, latency + message / chunks
    end = part + sent + (chunks - 1) * max(part, sent)
    assert times.records[-1].done == pytest.approx(end)
    assert [r.posted for r in times.records] == pytest.approx([s.end for s in times.spans])


def test_sliders_redraw_the_model() -> None:
    explorer = figures.explore_chunks()
    first = explorer.picture.value
    explorer.controls["chunks"].value = 16
    assert explorer.picture.value != first
