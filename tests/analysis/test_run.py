"""Days, money and energy, checked in other units."""

from __future__ import annotations

import pytest

from minimegatron.analysis.run import energy_kwh, gpu_cost, training_days


def test_a_token_costs_eight_flops_a_parameter_or_six() -> None:
    day = 86400 * 5 * 2e12  # what 5 GPUs of 2 TFLOP/s do in a day
    assert training_days(1e9, day / 8e9, 5, 2e12) == pytest.approx(1)
    assert training_days(1e9, day / 6e9, 5, 2e12, recompute=False) == pytest.approx(1)


def test_gpt3_takes_34_days_and_a_trillion_parameters_84() -> None:
    assert round(training_days(175e9, 300e9, 1024, 140e12)) == 34
    assert round(training_days(1008e9, 450e9, 3072, 163e12)) == 84


def test_money_and_energy_follow_gpu_hours() -> None:
    assert gpu_cost(2, 10, 3.0) == 2 * 24 * 10 * 3
    assert energy_kwh(2, 10, 500) == 2 * 24 * 10 / 2
    assert energy_kwh(2, 10, 500, overhead=1.2) == pytest.approx(1.2 * 2 * 24 * 10 / 2)
