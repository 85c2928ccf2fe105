"""Every rule is broken on purpose; the error names rank, action and rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

import minimegatron as mm

Rows = list[list[mm.Action]]
A = mm.Action


def broken(made: mm.Schedule, change: Callable[[Rows], object]) -> mm.Schedule:
    rows = [list(actions) for actions in made.actions]
    change(rows)
    assert rows != made.actions
    return replace(made, actions=rows)


def swap(row: list[mm.Action], one: mm.Action, other: mm.Action) -> None:
    i, j = row.index(one), row.index(other)
    row[i], row[j] = other, one


def rejected(schedule: mm.Schedule, sends: str = "posted") -> tuple[int, str, str]:
    with pytest.raises(mm.ScheduleError) as caught:
        schedule.validate(sends)
    error = caught.value
    assert str(error) == f"rank {error.rank}, {error.action}: {error.rule}"
    return error.rank, str(error.action), error.rule


EVERY = [
    *(make(p, m) for make in (mm.gpipe, mm.one_f_one_b, mm.zb_h2, mm.zbv)
      for p, m in ((1, 1), (1, 3), (2, 1), (2, 4), (4, 3), (4, 8), (8, 16))),
    *(mm.zb_h1(p, m) for p, m in ((1, 1), (2, 2), (2, 5), (4, 4), (4, 8), (8, 16))),
    *(mm.interleaved(p, m, v, factor) for factor in (1, 2)
      for p, m, v in ((1, 2, 2), (2, 2, 2), (2, 6, 3), (4, 8, 2), (8, 16, 4))),
]  # fmt: skip


@pytest.mark.parametrize("made", EVERY, ids=range(len(EVERY)))
def test_every_schedule_of_the_package_is_valid_with_posted_sends(made: mm.Schedule) -> None:
    made.validate()
    made.with_messages().validate()


@pytest.mark.parametrize(
    "action, there, rule",
    [
        (A("F", 1), "F1", "is missing"),
        (A("I", 1), "I1", "is missing"),  # leaves a W without its I
        (A("W", 1), "W1", "is missing"),
    ],
)
def test_a_missing_action_is_named(action: mm.Action, there: str, rule: str) -> None:
    assert rejected(broken(mm.zb_h1(2, 3), lambda rows: rows[1].remove(action))) == (1, there, rule)


def test_a_missing_backward_is_named() -> None:
    schedule = broken(mm.gpipe(2, 3), lambda rows: rows[1].remove(A("B", 2)))
    assert rejected(schedule) == (1, "B2", "is missing")


def test_a_microbatch_that_is_missing_on_every_rank_is_seen() -> None:
    def forget(rows: Rows) -> None:
        for row in rows:
            row[:] = [action for action in row if action.microbatch != 2]

    assert rejected(broken(mm.one_f_one_b(4, 4), forget)) == (0, "F2", "is missing")


def test_an_action_twice_or_of_no_micro_batch_chunk_or_kind_is_one_too_many() -> None:
    made = mm.one_f_one_b(2, 3)
    for extra in (A("F", 1), A("B", 2), A("F", 3), A("B", -1), A("F", 0, 1), A("X", 0), A("W", 0)):
        schedule = broken(made, lambda rows, extra=extra: rows[0].append(extra))
        rank, action, rule = rejected(schedule)
        if extra.kind == "W":  # then the backward of micro-batch 0 is I and W
            assert (rank, action, rule) == (0, "I0", "is missing")
        else:
            assert (rank, action, rule) == (0, str(extra), "is one too many")


@pytest.mark.parametrize(
    "made, one, other, wrong",
    [
        (mm.one_f_one_b(1, 1), A("F", 0), A("B", 0), "B0: comes before F0, which it needs"),
        (mm.zb_h1(2, 2), A("F", 1), A("I", 1), "I1: comes before F1, which it needs"),
        (mm.zb_h1(2, 2), A("I", 1), A("W", 1), "W1: comes before I1, which it needs"),
    ],
)
def test_each_action_comes_after_what_it_needs(
    made: mm.Schedule, one: mm.Action, other: mm.Action, wrong: str
) -> None:
    last = made.p - 1
    rank, action, rule = rejected(broken(made, lambda rows: swap(rows[last], one, other)))
    assert (rank, f"{action}: {rule}") == (last, wrong)


def test_two_stages_of_one_rank_run_in_their_order() -> None:
    turn = broken(mm.zbv(1, 1), lambda rows: swap(rows[0], A("F", 0, 0), A("F", 0, 1)))
    assert rejected(turn) == (0, "F0 of chunk 1", "comes before F0, which it needs")
    back = broken(mm.interleaved(1, 1, 2), lambda rows: swap(rows[0], A("B", 0, 0), A("B", 0, 1)))
    assert rejected(back) == (0, "B0", "comes before B0 of chunk 1, which it needs")


def test_every_result_that_travels_is_sent_and_received_once() -> None:
    full = mm.one_f_one_b(2, 2).with_messages()
    for rank, action in ((0, A("SEND_F", 1)), (1, A("RECV_F", 0)), (0, A("RECV_B", 1))):
        schedule = broken(full, lambda rows, r=rank, a=action: rows[r].remove(a))
        assert rejected(schedule) == (rank, str(action), "is missing")
        schedule = broken(full, lambda rows, r=rank, a=action: rows[r].append(a))
        assert rejected(schedule) == (rank, str(action), "is one too many")
    for action in (A("SEND_F", 0), A("RECV_B", 0)):  # the last stage sends nothing on
        schedule = broken(full, lambda rows, a=action: rows[1].append(a))
        assert rejected(schedule) == (1, str(action), "is one too many")


def test_a_result_is_sent_after_it_is_computed_and_received_before_it_is_used() -> None:
    full = mm.gpipe(2, 2).with_messages()
    early = broken(full, lambda rows: swap(rows[0], A("F", 0), A("SEND_F", 0)))
    assert rejected(early) == (0, "SEND_F0", "comes before F0, which it needs")
    late = broken(full, lambda rows: swap(rows[1], A("F", 1), A("RECV_F", 1)))
    assert rejected(late) == (1, "F1", "comes before RECV_F1, which it needs")


def test_messages_in_another_order_at_the_other_end_are_named() -> None:
    """Bug 25: nothing hangs, the wrong data arrives."""
    full = mm.gpipe(2, 2).with_messages()
    second = list(full.actions[1])
    second.remove(A("RECV_F", 1))
    rows = [full.actions[0], [A("RECV_F", 1), *second]]
    assert rejected(replace(full, actions=rows)) == (
        1,
        "RECV_F1",
        "comes before RECV_F0, which rank 0 sends first",
    )


def test_a_rank_that_waits_for_its_own_later_result_is_a_circle() -> None:
    # Rank 0 wants the backward of 0 before its forward of 1; rank 1 does both forwards first.
    one_by_one = [A("F", 0), A("B", 0), A("F", 1), A("B", 1)]
    schedule = mm.Schedule([one_by_one, mm.gpipe(1, 2).actions[0]], 2)
    assert rejected(schedule) == (
        0,
        "RECV_B0",
        "deadlock with posted sends: rank 0 does RECV_B0 before SEND_F1, "
        "rank 1 does RECV_F1 before SEND_B0",
    )


def test_blocking_sends_pass_gpipe_and_stop_1f1b() -> None:
    """Bug 18: both neighbours send first."""
    for p, m in ((2, 4), (4, 8), (8, 8)):
        mm.gpipe(p, m).validate("blocking")
        rank, action, rule = rejected(mm.one_f_one_b(p, m), "blocking")
        assert rule.startswith("deadlock with blocking sends: ")
        assert (rank, action) == (0, f"SEND_F{p - 1}")
    assert rejected(mm.one_f_one_b(2, 4), "blocking")[2] == (
        "deadlock with blocking sends: rank 0 does SEND_F1 before RECV_B0, "
        "rank 1 does SEND_B0 before RECV_F1"
    )
    for made in (mm.interleaved(4, 8, 2), mm.zb_h1(4, 8), mm.zb_h2(4, 8), mm.zbv(4, 8)):
        assert "deadlock with blocking sends" in rejected(made, "blocking")[2]


def test_a_circle_is_one_that_the_schedule_has() -> None:
    """What the message says is true of the lists: on each rank the one comes before the other,
    and the two ends of neighbouring parts are one message."""
    for made in (mm.one_f_one_b(4, 8), mm.interleaved(4, 8, 2), mm.zb_h1(4, 8)):
        full = made.with_messages()
        rule = rejected(made, "blocking")[2]
        parts = [
            part.groups()
            for part in re.finditer(r"rank (\d+) does (.+?) before (.+?)(?=, rank|$)", rule)
        ]
        assert len(parts) >= 2
        named = [{str(action): action for action in actions} for actions in full.actions]
        for here, there in zip(parts, [*parts[1:], parts[0]], strict=True):
            rank, peer = int(here[0]), int(there[0])
            first, then = (named[rank][name] for name in here[1:])
            assert full.actions[rank].index(first) < full.actions[rank].index(then)
            last, met = then, named[peer][there[1]]
            assert last.kind[-2:] == met.kind[-2:] and last.microbatch == met.microbatch
            assert {last.kind[:4], met.kind[:4]} == {"SEND", "RECV"}


def test_receives_posted_ahead_wait_for_nothing() -> None:
    """Both ranks post every receive first: fine as posted, a deadlock as blocking calls."""
    full = mm.one_f_one_b(2, 3).with_messages()
    ahead = [sorted(row, key=lambda action: "RECV" not in action.kind) for row in full.actions]
    schedule = replace(full, actions=ahead)
    schedule.validate()
    assert "deadlock" in rejected(schedule, "blocking")[2]


def test_activations_in_flight_are_limited() -> None:
    made = mm.one_f_one_b(4, 8)
    made.validate(max_in_flight=4)
    with pytest.raises(mm.ScheduleError) as caught:
        mm.gpipe(4, 8).validate(max_in_flight=4)
    assert (caught.value.rank, caught.value.action) == (0, A("F", 4))
    assert caught.value.rule == "holds 5 micro-batches in flight, the limit is 4"
    mm.interleaved(4, 8, 2).validate(max_in_flight=5.5)
    with pytest.raises(mm.ScheduleError, match="holds 5.5 micro-batches in flight"):
        mm.interleaved(4, 8, 2).validate(max_in_flight=5)


def test_sends_are_posted_or_blocking() -> None:
    with pytest.raises(ValueError, match='"posted" or "blocking", not \'eager\''):
        mm.gpipe(2, 2).validate("eager")
