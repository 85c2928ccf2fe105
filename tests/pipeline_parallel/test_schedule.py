from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minimegatron as mm

SMALL = st.integers(1, 5)


@st.composite
def schedules(draw: st.DrawFn) -> mm.Schedule:
    """Any schedule of the package, of any small size."""
    p, m, v = draw(SMALL), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    return draw(
        st.sampled_from(
            [
                lambda: mm.gpipe(p, m),
                lambda: mm.one_f_one_b(p, m),
                lambda: mm.interleaved(p, p * groups, v),
                lambda: mm.zb_h1(p, m + p - 1),
                lambda: mm.zb_h2(p, m),
                lambda: mm.zbv(p, m),
            ]
        )
    )()


@given(schedules())
@settings(max_examples=100, deadline=None)
def test_a_schedule_survives_the_notation_with_and_without_messages(made: mm.Schedule) -> None:
    for schedule in (made, made.with_messages()):
        read = mm.Schedule.from_csv(schedule.to_csv(), m=schedule.m)
        one_stage_each = schedule.v == 1 or schedule.p == 1  # nothing to tell a V by
        assert read.v_shaped == (schedule.v_shaped and not one_stage_each)
        assert (read.actions, read.m, read.v) == (schedule.actions, schedule.m, schedule.v)


@given(schedules())
@settings(max_examples=100, deadline=None)
def test_stage_and_place_are_each_other_the_other_way_round(made: mm.Schedule) -> None:
    stages = [made.stage(rank, chunk) for rank in range(made.p) for chunk in range(made.v)]
    assert sorted(stages) == list(range(made.p * made.v))
    for stage in stages:
        assert made.stage(*made.place(stage)) == stage


def test_stages_are_looped_or_v_shaped() -> None:
    looped, turned = mm.interleaved(4, 8, 2), mm.zbv(4, 8)
    assert [looped.stage(rank, 1) for rank in range(4)] == [4, 5, 6, 7]
    assert [turned.stage(rank, 1) for rank in range(4)] == [7, 6, 5, 4]
    assert [turned.stage(rank, 0) for rank in range(4)] == [0, 1, 2, 3]


def test_the_notation_is_stage_kind_microbatch_and_idle_cells_are_left_out() -> None:
    text = "0F0, 0F1,,, 0I0, 0W0, 0B1\n,1F0, 1I0, 1W0, 1F1, 1B1\n"
    read = mm.Schedule.from_csv(text)
    assert read.actions[0][2:] == [mm.Action("I", 0), mm.Action("W", 0), mm.Action("B", 1)]
    assert read.to_csv() == text.replace(" ", "").replace(",,,", ",").replace("\n,", "\n")
    read.validate()
    assert mm.interleaved(2, 2, 2).to_csv().splitlines()[1].startswith("1F0,1F1,3F0,3B0")


def test_a_microbatch_missing_everywhere_is_seen_where_its_number_is_known() -> None:
    text = "0F0,0B0\n1F0,1B0\n"
    mm.Schedule.from_csv(text).validate()
    with pytest.raises(mm.ScheduleError, match="rank 0, F1: is missing"):
        mm.Schedule.from_csv(text, m=2).validate()


@pytest.mark.parametrize(
    "text, rank, wrong",
    [
        ("0F0,0Q0\n", 0, "0Q0: a cell is like 0F0"),
        ("0F0\n1F0,F1\n", 1, "F1: a cell"),
        ("0F0,1F0\n2F0,3F0\n", 0, "1F0: stage 1 is rank 1's"),
        ("0F0\n1F0,2F0,3F0\n", 1, "3F0: stage 3 is rank 0's"),
    ],
)
def test_a_cell_that_is_none_or_on_another_rank_is_named(text: str, rank: int, wrong: str) -> None:
    with pytest.raises(mm.ScheduleError, match=wrong) as caught:
        mm.Schedule.from_csv(text)
    assert caught.value.rank == rank and str(caught.value).startswith(f"rank {rank}, ")


def test_there_is_at_least_one_rank_microbatch_and_chunk() -> None:
    for sizes in ((0, 4), (2, 0), (2, -1)):
        for make in (mm.gpipe, mm.one_f_one_b, mm.zb_h2, mm.zbv):
            with pytest.raises(ValueError, match="at least 1"):
                make(*sizes)
    for p, m, v in ((0, 4, 1), (2, 4, 0), (2, 3, 1)):
        with pytest.raises(ValueError, match=f"p={p}.*m={m}"):
            mm.interleaved(p, m, v)
    with pytest.raises(ValueError, match="p=4, m=3"):
        mm.zb_h1(4, 3)


@given(schedules())
@settings(max_examples=50, deadline=None)
def test_messages_are_one_for_each_border_between_ranks_and_alike_at_both_ends(
    made: mm.Schedule,
) -> None:
    full = made.with_messages()
    stages, p = made.p * made.v, made.p
    crossing = sum(made.place(stage)[0] != made.place(stage + 1)[0] for stage in range(stages - 1))
    kinds = [action.kind for actions in full.actions for action in actions]
    for kind in ("SEND_F", "RECV_F", "SEND_B", "RECV_B"):
        assert kinds.count(kind) == crossing * made.m
    # Told apart by nothing but their order, the messages of two ranks still match.
    for sender in range(p):
        for receiver in range(p):
            ends = {}
            for rank, verb in ((sender, "SEND"), (receiver, "RECV")):
                ends[verb] = [
                    (way, n, border)
                    for kind, n, chunk in full.actions[rank]
                    if kind.startswith(verb)
                    for way in [kind[-1]]
                    for stage in [made.stage(rank, chunk)]
                    for ahead in [(verb == "SEND") == (way == "F")]
                    for border in [stage if ahead else stage - 1]  # between it and the next
                    for peer in [made.place(stage + 1 if ahead else stage - 1)[0]]
                    if peer == (receiver if verb == "SEND" else sender)
                ]
            assert ends["SEND"] == ends["RECV"]


def test_a_result_is_sent_at_once_and_received_right_before_its_use() -> None:
    full = mm.one_f_one_b(2, 2).with_messages()
    assert full.to_csv().splitlines() == [
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1",
        "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1",
    ]


def test_what_is_in_flight_is_counted_until_b_or_w() -> None:
    assert mm.one_f_one_b(2, 2).in_flight(0) == [1, 2, 1, 0]
    assert mm.Schedule.from_csv("0F0,0I0,0W0").in_flight(0) == [1, 1, 0]
    assert mm.interleaved(1, 1, 2).in_flight(0) == [0.5, 1, 0.5, 0]
