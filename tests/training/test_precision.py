"""Mixed precision: the loss scaler step by step, masters, fp32 sums, and ranks that skip together.

The scaler's oracles: torch's own update of a scale (a kernel of GradScaler), and the rules of
Megatron-LM and Apex written down here once more as plain loops.
"""

from __future__ import annotations

import random

import pytest
import torch

import minimegatron as mm
from minimegatron.training.precision import DynamicLossScaler

# Copied from the course's published tables: what the systems are set to.
MEGATRON = {"initial_scale": 4294967296, "min_scale": 1.0, "growth_factor": 2.0,
            "backoff_factor": 0.5, "growth_interval": 1000, "hysteresis": 2}  # fmt: skip
TORCH = {"initial_scale": 65536, "growth_factor": 2.0, "backoff_factor": 0.5,
         "growth_interval": 2000, "hysteresis": 1, "min_scale": 0.0}  # fmt: skip
APEX = TORCH | {"max_scale": 16777216}


def overflows(seed, steps=400, share=0.3):
    """A random sequence with quiet and bad stretches: True where a step overflows."""
    generator, found = random.Random(seed), []
    while len(found) < steps:
        bad = generator.random() < share
        found += [bad and generator.random() < 0.7 for _ in range(generator.randint(1, 12))]
    return found[:steps]


def scales(scaler, found):
    history = []
    for found_inf in found:
        scaler.update(found_inf)
        history.append(scaler.scale)
    return history


def test_the_defaults_are_megatrons_published_settings():
    scaler = DynamicLossScaler()
    assert {name: getattr(scaler, name) for name in MEGATRON if name != "initial_scale"} == {
        name: value for name, value in MEGATRON.items() if name != "initial_scale"
    }
    assert scaler.scale == MEGATRON["initial_scale"] == 2**32


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interval", [1, 3, 10])
def test_with_torchs_settings_it_is_torchs_grad_scaler_step_by_step(seed, interval):
    found = overflows(seed)
    scale, tracker = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    wanted = []
    for found_inf in found:
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(found_inf)), 2.0, 0.5, interval)
        wanted.append(float(scale))
    settings = TORCH | {"growth_interval": interval}
    assert scales(DynamicLossScaler(**settings), found) == wanted


def test_with_torchs_settings_it_is_what_grad_scaler_itself_does_to_a_training_run():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
    ours = DynamicLossScaler(**TORCH | {"growth_interval": 4})
    for found_inf in overflows(7, 60):
        parameter.grad = torch.full((3,), torch.inf if found_inf else 1.0)
        theirs.scale(torch.zeros(()))  # creates the scale
        theirs.step(optimizer)
        theirs.update()
        ours.update(found_inf)
        assert ours.scale == theirs.get_scale()


def megatron(found, initial, interval, hysteresis, minimum):
    """Megatron's rule: only growth restores the hysteresis."""
    scale, quiet, left = initial, 0, hysteresis
    for found_inf in found:
        if found_inf:
            quiet, left = 0, left - 1
            scale = max(scale / 2, minimum) if left <= 0 else scale
        else:
            quiet += 1
            if quiet == interval:
                scale, quiet, left = scale * 2, 0, hysteresis
        yield scale


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_it_is_megatrons_rule_step_by_step(seed, hysteresis):
    found = overflows(seed)
    settings = MEGATRON | {"growth_interval": 5, "hysteresis": hysteresis}
    wanted = list(megatron(found, 2**32, 5, hysteresis, 1.0))
    assert scales(DynamicLossScaler(**settings), found) == wanted


def test_the_hysteresis_is_restored_by_growth_and_not_by_good_steps():
    scaler = DynamicLossScaler(8.0, growth_interval=3, hysteresis=2)
    # Forgiven, good, falls: a good step in between does not forgive again.
    assert scales(scaler, [True, False, True, True]) == [8, 8, 4, 2]
    # Growth does: the next overflow is forgiven, the one after it is not.
    assert scales(scaler, [False, False, False, True, True]) == [2, 2, 4, 4, 2]


def test_an_overflow_starts_the_count_of_good_steps_again():
    scaler = DynamicLossScaler(8.0, growth_interval=3, hysteresis=2)
    assert scales(scaler, [False, False, True, False, False, False]) == [8, 8, 8, 8, 8, 16]


def test_the_scale_stays_between_its_limits():
    scaler = DynamicLossScaler(4.0, growth_interval=1, hysteresis=1, min_scale=1.0)
    assert scales(scaler, [True] * 4) == [2, 1, 1, 1]
    apex = DynamicLossScaler(**APEX | {"growth_interval": 1})
    assert scales(apex, [False] * 10)[-3:] == [2**24] * 3
    endless = DynamicLossScaler(growth_interval=1)
    highest = torch.tensor(scales(endless, [False] * 200)[-1])
    assert torch.isfinite(highest) and torch.isinf(highest * 2)  # float32 holds no larger one


def test_settings_part_ways_on_the_same_overflows():
    found = [True, False, False, True, False, False, False, False]
    histories = [
        scales(
            DynamicLossScaler(**settings | {"initial_scale": 2**24, "growth_interval": 3}), found
        )
        for settings in (MEGATRON, TORCH, APEX)
    ]
    exponents = [[torch.tensor(s).log2().int().item() - 24 for s in h] for h in histories]
    assert exponents == [
        [0, 0, 0, -1, -1, -1, 0, 0],
        [-1, -1, -1, -2, -2, -2, -1, -1],
        [-1, -1, -1, -2, -2, -2, -1, -1],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growth_factor": 1.0}, "growth_factor=1.0 is not above 1"),
        ({"backoff_factor": 2}, "backoff_factor=2 is not between 0 and 1"),
        ({"growth_interval": 0}, "growth_interval=0 is not at least 1"),
        ({"hysteresis": 0}, "hysteresis=0 is not at least 1"),
        ({"min_scale": -1}, "min_scale=-1 is not at least 0"),
        ({"initial_scale": 0, "min_scale": 0}, "initial_scale=0 is not above 0"),
        ({"max_scale": 2.0}, "initial_scale=.* is not .* to max_scale=2.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mm.DynamicLossScaler(**settings)
