"""Times against an oracle that shares no code, closed forms, and the papers' tables."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minimegatron as mm


def longest_path(
    made: mm.Schedule, cost: dict[str, list[float]], comm: float
) -> dict[tuple[int, int], float]:
    """(rank, place in its list) -> the end, by recursion over what an action waits for."""
    where = {
        ("B" if kind == "I" else kind, n, made.stage(r, chunk)): (r, i)
        for r, actions in enumerate(made.actions)
        for i, (kind, n, chunk) in enumerate(actions)
    }

    @cache
    def end(rank: int, i: int) -> float:
        kind, n, chunk = made.actions[rank][i]
        stage = made.stage(rank, chunk)
        before = [end(rank, i - 1)] if i else [0.0]
        step = {"F": -1, "B": 1, "I": 1, "W": 0}[kind]
        if step and 0 <= stage + step < made.p * made.v:
            other = where["F" if kind == "F" else "B", n, stage + step]
            before.append(end(*other) + (comm if other[0] != rank else 0.0))
        return max(before) + cost[kind][stage]

    return {
        (r, i): end(r, i) for r, actions in enumerate(made.actions) for i in range(len(actions))
    }


COST = st.floats(0.1, 3.0)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_times_are_the_longest_paths_through_what_waits_for_what(data: st.DataObject) -> None:
    p, m, v = (data.draw(st.integers(1, high)) for high in (4, 6, 3))
    makes = (mm.gpipe, mm.one_f_one_b, mm.zb_h2, mm.zbv)
    make = data.draw(st.sampled_from([*makes, lambda p, m: mm.interleaved(p, p * m, v)]))
    made = make(p, m)
    stages = made.p * made.v
    costs = [data.draw(st.lists(COST, min_size=stages, max_size=stages)) for _ in range(3)]
    comm = data.draw(st.sampled_from([0.0, 0.3, 2.0]))
    forward, inputs, weights = costs
    both = [i + w for i, w in zip(inputs, weights, strict=True)]
    expected = longest_path(made, {"F": forward, "I": inputs, "W": weights, "B": both}, comm)
    found = mm.simulate(made, forward, inputs, weights, comm)
    for rank, spans in enumerate(found.spans):
        assert [action for action, _, _ in spans] == made.actions[rank]
        for i, (_, _, end) in enumerate(spans):
            assert end == pytest.approx(expected[rank, i], rel=1e-12)
    assert found.total_time == pytest.approx(max(expected.values()), rel=1e-12)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 4), COST, COST, COST)
@settings(max_examples=60, deadline=None)
def test_the_bubble_is_the_closed_form_whatever_f_i_and_w_take(
    p: int, groups: int, v: int, f: float, i: float, w: float
) -> None:
    m = p * groups
    for made in (mm.gpipe(p, m), mm.one_f_one_b(p, m), mm.interleaved(p, m, v)):
        found = mm.simulate(made, f, i, w)
        assert found.bubble() == pytest.approx(mm.bubble_fraction(p, m, made.v), abs=1e-12)
        ideal = m * (f + i + w)
        assert found.ideal_time == pytest.approx(ideal)
        # The other definition, of GPipe and of the zero-bubble papers.
        total = (p - 1) / (made.v * m + p - 1)
        assert found.bubble(of="total") == pytest.approx(total, abs=1e-12)


def test_the_two_definitions_of_the_bubble_are_told_apart() -> None:
    found = mm.simulate(mm.gpipe(4, 8))
    assert found.bubble() == found.bubble(of="ideal") == mm.bubble_fraction(4, 8) == 3 / 8
    assert found.bubble(of="total") == 3 / 11
    with pytest.raises(ValueError, match='"ideal" or of="total", not \'real\''):
        found.bubble(of="real")


def test_a_step_takes_what_narayanan_s_formula_says() -> None:
    """(m + p - 1)(t_f + t_b), arXiv:2104.04473, section 3.3 (b'/b is m)."""
    for p, m, forward, backward in ((4, 8, 1.0, 2.0), (8, 3, 0.7, 1.9)):
        found = mm.simulate(mm.one_f_one_b(p, m), forward, backward / 2, backward / 2)
        assert found.total_time == pytest.approx((m + p - 1) * (forward + backward))


def test_what_is_held_at_most_is_what_the_papers_say() -> None:
    p, m = 4, 12
    peak = {
        name: mm.simulate(made).peak_in_flight
        for name, made in (
            ("gpipe", mm.gpipe(p, m)),
            ("1f1b", mm.one_f_one_b(p, m)),
            ("interleaved", mm.interleaved(p, m, 2)),
            ("zb_h1", mm.zb_h1(p, m)),
            ("zb_h2", mm.zb_h2(p, m)),
            ("zbv", mm.zbv(p, m)),
        )
    }
    assert peak["gpipe"] == [m] * p
    assert peak["1f1b"] == [p - rank for rank in range(p)]
    # Megatron-LM's warm-up and one more forward, each of half a rank's layers.
    assert peak["interleaved"] == [((p - r - 1) * 2 + p + 1) / 2 for r in range(p)]
    assert peak["zb_h1"] == [p] * p
    assert peak["zb_h2"] == [2 * p - 1] * p
    assert peak["zbv"] == [p] * p


# arXiv:2401.10241: table 2, the bubble's size; p from 2, m large enough to be steady.
TABLE_2 = {"1F1B": (mm.one_f_one_b, 0), "ZB-H1": (mm.zb_h1, 1), "ZB-H2": (mm.zb_h2, 2)}


@pytest.mark.parametrize("name", TABLE_2)
@pytest.mark.parametrize("f, i, w", [(1, 1, 1), (1.0, 1.1, 0.9), (18.522, 18.086, 9.337)])
def test_the_zero_bubble_formulas_hold_exactly(name: str, f: float, i: float, w: float) -> None:
    """(p-1)(F+I+W), (p-1)(F+I-W), (p-1)(F+I-2W), the ranks not waiting for each other."""
    make, saved = TABLE_2[name]
    for p, m in ((2, 6), (4, 12), (8, 24)):
        found = mm.simulate(make(p, m), f, i, w)
        size = found.longest_rank - m * (f + i + w)
        without = f + i + w if saved == 0 else f + i - saved * w
        assert size == pytest.approx((p - 1) * without, abs=1e-9)


def test_the_bubble_rates_of_the_zero_bubble_readme() -> None:
    """With F=I=W, of the total: B=(p-1)/(m+p-1), ZB1P B/3, ZB2P 0, ZBV 0. B/3 is rounded there:
    ZB-H1 has (p-1)/(3m+p-1), from 1.1 to 1.5 times that. V-Half and V-Min are not built."""
    for p, m in ((4, 8), (8, 24), (8, 64)):
        b = (p - 1) / (m + p - 1)
        rate = {
            make.__name__: mm.simulate(make(p, m)).bubble("total", ranks_meet=False)
            for make in (mm.one_f_one_b, mm.zb_h1, mm.zb_h2, mm.zbv)
        }
        assert rate["one_f_one_b"] == pytest.approx(b)
        assert rate["zb_h1"] == pytest.approx((p - 1) / (3 * m + p - 1))
        assert 1 <= rate["zb_h1"] / (b / 3) < 1.25
        assert rate["zb_h2"] == rate["zbv"] == 0


# Table 5 of arXiv:2401.10241 (rates of the total; the cost is the longest rank's own), and from
# table 9 the profiled times that it was calculated with: F, B (our I), W and one message, in ms.
TABLE_5 = [
    # model, p, m, chunks, (F, I, W, message), 1F1B, 1F1B-I, ZB-H1, ZB-H2, ZB-1p
    ("1.5B", 8, 24, 3, (18.522, 18.086, 9.337, 0.601), 0.2431, 0.1055, 0.1585, 0.1083, 0.1585),
    ("1.5B", 8, 32, 3, (18.513, 18.086, 9.331, 0.626), 0.1985, 0.0818, 0.1242, 0.0837, 0.1242),
    ("1.5B", 8, 64, 3, (18.546, 18.097, 9.321, 0.762), 0.1240, 0.0443, 0.0674, 0.0444, 0.0674),
    ("6.2B", 8, 24, 4, (29.718, 29.444, 19.927, 0.527), 0.2347, 0.0808, 0.1323, 0.0698, 0.1323),
    ("6.2B", 8, 32, 4, (29.802, 29.428, 19.530, 0.577), 0.1898, 0.0628, 0.1045, 0.0559, 0.1045),
    ("6.2B", 8, 64, 4, (29.935, 29.621, 19.388, 0.535), 0.1091, 0.0320, 0.0554, 0.0294, 0.0554),
]


@pytest.mark.parametrize("row", TABLE_5, ids=lambda row: f"{row[0]}-{row[2]}")
def test_the_zero_bubble_table_is_computed_to_its_last_digit(row: tuple) -> None:
    """1F1B, ZB-H1 and ZB-H2 to 0.00005, in all rows (ZB-1p, which the paper's search found, is
    ZB-H1 in its table too). Interleaved to 0.0035: the paper does not say how it costs chunks. The
    searched ZB-2p is not built; ZB-H2 bounds it from above."""
    _, p, m, v, times, plain, inter, h1, h2, searched = row
    rate = [
        mm.simulate(made, *times).bubble("total", ranks_meet=False)
        for made in (mm.one_f_one_b(p, m), mm.zb_h1(p, m), mm.zb_h2(p, m), mm.interleaved(p, m, v))
    ]
    assert rate[:3] == pytest.approx([plain, h1, h2], abs=0.6e-4)
    assert searched == h1
    assert rate[3] == pytest.approx(inter, abs=0.0036)


def test_flops_alone_do_not_give_that_table() -> None:
    """With the paper's table 1 for F, B and W (W nearly as long as F) the rows of 1F1B come out
    within 0.026 (its messages) and ZB-H1 0.06 too low: W took half of F on the GPU."""
    for model, p, m, *_, plain, _, h1, _, _ in TABLE_5:
        h, s = {"1.5B": (2304, 1024), "6.2B": (4096, 1024)}[model]
        flops = 24 * h + 4 * s, 24 * h + 8 * s, 24 * h
        rate = [
            mm.simulate(make(p, m), *flops).bubble("total") for make in (mm.one_f_one_b, mm.zb_h1)
        ]
        assert 0 < plain - rate[0] < 0.026
        assert 0 < h1 - rate[1] < 0.06


@pytest.mark.parametrize("p, m, v", [(2, 4, 2), (4, 8, 2), (4, 16, 4), (8, 16, 2)])
def test_without_the_factor_2_of_the_warm_up_only_messages_show_it(p: int, m: int, v: int) -> None:
    """Bug 17: valid, the same bubble while messages are free, less memory, slower once they are
    not."""
    right, wrong = mm.interleaved(p, m, v), mm.interleaved(p, m, v, warmup_factor=1)
    wrong.validate()
    free = [mm.simulate(made) for made in (right, wrong)]
    assert free[0].total_time == free[1].total_time
    assert sum(free[1].peak_in_flight) < sum(free[0].peak_in_flight)
    slow = [mm.simulate(made, comm=0.1) for made in (right, wrong)]
    assert slow[1].total_time > slow[0].total_time * 1.01


def test_a_message_delays_the_next_stage_and_occupies_nobody() -> None:
    # One micro-batch through p ranks: 2 (p - 1) messages.
    for p in (1, 2, 5):
        assert mm.simulate(mm.gpipe(p, 1), comm=0.5).total_time == 3 * p + 0.5 * 2 * (p - 1)
    # Four stages on a V make two messages each way: none between the two stages at its foot.
    free, delayed = (mm.simulate(mm.zbv(2, 1), comm=comm).total_time for comm in (0.0, 1.0))
    assert delayed == free + 4
    ahead = mm.simulate(mm.gpipe(2, 4), comm=1.0)
    assert [start for action, start, _ in ahead.spans[0] if action.kind == "F"] == [0, 1, 2, 3]


def test_a_link_carries_one_message_after_the_other() -> None:
    """Latency delays every message alike; bandwidth makes the next one wait."""
    made = mm.Schedule.from_csv("0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1F1,1F2,1B0,1B1,1B2\n")
    starts = lambda found: [start for action, start, _ in found.spans[1] if action.kind == "F"]  # noqa: E731
    assert starts(mm.simulate(made, comm=2.0)) == [3, 4, 5]
    assert starts(mm.simulate(made, link=2.0)) == [3, 5, 7]
    assert starts(mm.simulate(made, comm=0.5, link=2.0)) == [3.5, 5.5, 7.5]


def test_unequal_stages_wait_for_the_slowest() -> None:
    slow = mm.simulate(mm.one_f_one_b(4, 8), forward=[1, 1, 2, 1], input_grad=[1, 1, 2, 1])
    assert slow.ideal_time == 8 * 5
    # The way there through ranks 0 and 1, rank 2's own work with one wait for rank 3's first
    # backward, the way back.
    assert slow.total_time == 2 + (8 * 5 + 1) + 2 * 2
    even = mm.simulate(mm.interleaved(2, 2, 2), 1.0, 1.0, 1.0)
    assert mm.simulate(mm.interleaved(2, 2, 2), [0.5] * 4, [0.5] * 4, [0.5] * 4).spans == even.spans


def test_costs_that_are_none_are_refused() -> None:
    made = mm.interleaved(2, 2, 2)
    for costs in ({"forward": [1.0, 1.0]}, {"weight_grad": -1.0}, {"comm": -0.1}, {"link": -1.0}):
        with pytest.raises(ValueError, match="4"):
            mm.simulate(made, **costs)


def test_a_schedule_that_waits_for_ever_is_explained() -> None:
    one_by_one = mm.Schedule.from_csv("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n")
    with pytest.raises(mm.ScheduleError, match="deadlock with posted sends"):
        mm.simulate(one_by_one)


def test_messages_in_the_schedule_change_nothing() -> None:
    made = mm.interleaved(2, 4, 2)
    assert mm.simulate(made.with_messages(), comm=0.3).spans == mm.simulate(made, comm=0.3).spans


def test_a_measured_timeline_has_the_same_properties() -> None:
    made = mm.one_f_one_b(2, 1)
    starts, ends = [[10.0, 14.5], [11.5, 12.5]], [[11.0, 16.5], [12.5, 14.5]]
    found = mm.Timeline(made, starts, ends)
    assert (found.total_time, found.longest_rank, found.ideal_time) == (6.5, 6.5, 3.0)
    assert found.bubble(of="total") == 3.5 / 6.5


def test_64_ranks_4096_microbatches_2_chunks_in_under_5_seconds() -> None:
    start = time.process_time()
    found = mm.simulate(mm.interleaved(64, 4096, 2))
    assert time.process_time() - start < 5
    assert found.bubble() == pytest.approx(mm.bubble_fraction(64, 4096, 2))
