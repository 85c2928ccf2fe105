"""Parity in half precision: its bands let rounding pass and planted bugs not."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import Function
from torch.nn import functional as F

import minimegatron as mm
from minimegatron.training.report import bands_of

CONFIG = mm.GPTConfig(vocab_size=38, seq_length=8, hidden_size=32, num_layers=2, num_heads=4)
HALVES = [torch.bfloat16, torch.float16]
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "features",
    [
        {},
        {"tp": 2, "dp": 2},
        {"tp": 4},
        {"dp": 2, "microbatches": 2},
        {"tp": 2, "layer_norm": "post", "tie_embeddings": False},
        {"tp": 2, "attention": "explicit", "dropout": 0.1},
        {"tp": 2, "num_layers": 6, "steps": 1},
    ],
)
def test_half_precision_is_equal_within_its_bands_and_not_by_vacuity(dtype, features):
    report = mm.parity(CONFIG, dtype=dtype, **features)
    assert report.ok, report
    # It did compute in half precision: the errors are of the size of its roundoff ...
    assert ROUNDOFF[dtype] / 2 < report.errors["logits"]
    # ... and the bands leave room for what another machine rounds elsewhere.
    assert all(report.errors[k] < report.band(k) / 1.8 for k in report.errors if k != "masks"), (
        report
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_the_bands_do_not_depend_on_luck(dtype):
    for seed in range(1, 7):
        report = mm.parity(CONFIG, tp=2, dtype=dtype, seed=seed, steps=2)
        assert report.ok, report


def no_f(x, axis):
    return x


class _ReducesTwice(Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return mm.all_reduce(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return mm.all_reduce(grad, ctx.axis), None


def g_twice(x, axis):
    return _ReducesTwice.apply(x, axis)


class BiasTwice(mm.RowParallelLinear):
    def forward(self, x):
        return mm.g(F.linear(x, self.weight, self.bias), self.axis)


def forgotten(model):
    model.tokens_since_finish = 0


def counts_twice(model):
    total = torch.stack([p.grad.norm().square() for p in model.parameters()]).sum()
    return mm.all_reduce(total, model.mesh.tp).sqrt()


def stands_still(model, *args, **options):
    return torch.optim.SGD(model.parameters(), lr=0.0)


def climbs(model, lr, **options):
    """A right optimizer but for a sign."""
    optimizer = mm.make_optimizer(model, lr, **options)
    optimizer.param_groups[0]["maximize"] = True
    return optimizer


BUGS = {
    "1, a bias added on every rank": ({"RowParallelLinear": BiasTwice}, {"tp": 2}, "logits"),
    "3, no f": ({"f": no_f}, {"tp": 2}, "gradients"),
    "4, g reduces again": ({"g": g_twice}, {"tp": 2}, "gradients"),
    "13, counted tp times": ({"gradient_norm": counts_twice}, {"tp": 2}, "grad_norm"),
    "22, not averaged": ({"finish_gradients": forgotten}, {"dp": 2}, "gradients"),
    "an optimizer that stands still": ({"make_optimizer": stands_still}, {}, "updates"),
    "an optimizer that climbs": ({"make_optimizer": climbs}, {}, "updates"),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_fail_by_far(bug, dtype):
    using, split, kind = BUGS[bug]
    report = mm.parity(CONFIG, dtype=dtype, using=using, **split)
    assert not report.ok
    assert report.errors[kind] > 1.8 * report.band(kind), report


def test_the_bands_grow_with_the_roundoff_and_the_root_of_the_depth():
    shallow, deep = bands_of(torch.bfloat16, 2), bands_of(torch.bfloat16, 38)
    fine = bands_of(torch.float16, 2)
    for kind in ("logits", "gradients", "grad_norm"):
        assert shallow[kind] == pytest.approx(8 * fine[kind])
        assert deep[kind] == pytest.approx(shallow[kind] * math.sqrt(612 / 36))
    assert all(band < 0.15 for kind, band in shallow.items() if kind != "updates")


def test_other_dtypes_are_refused_with_those_that_have_bands():
    with pytest.raises(ValueError, match="torch.float8_e4m3fn: parity has bands for torch.float64"):
        mm.parity(CONFIG, dtype=torch.float8_e4m3fn)
