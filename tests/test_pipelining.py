"""`bench pipelining`: what it says of a run is true of one whose times are known."""

from __future__ import annotations

import pytest

import minimegatron as mm
from minimegatron.cli.bench import Row
from minimegatron.cli.pipelining import explained


@pytest.mark.parametrize("last", [1.0, 3.0])
def test_without_messages_work_and_bubble_explain_the_whole_step(last):
    run = mm.simulate(mm.one_f_one_b(2, 8), forward=[1, last], input_grad=[1, last], weight_grad=1)
    work, bubble = explained(run)
    assert work == pytest.approx(8 * (2 * last + 1))
    assert work + bubble == pytest.approx(run.total_time)


def test_what_messages_take_is_left_over():
    run = mm.simulate(mm.one_f_one_b(2, 8), comm=0.5)
    work, bubble = explained(run)
    assert run.total_time - work - bubble > 0.4


def test_a_row_without_a_target_is_always_met():
    assert Row("pp=2", [1.2], None, "x").met
