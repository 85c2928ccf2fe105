"""Bytes for a parameter, against the terms that papers and documentation state."""

from __future__ import annotations

import pytest
import torch

from minimegatron.analysis.memory import STATES, state_bytes


@pytest.mark.parametrize("dp", [1, 2, 7, 64])
def test_zero_splits_one_kind_after_the_other(dp: int) -> None:
    psi, k = 1000.0, 12
    stages = [
        (4 + k) * psi,
        4 * psi + k * psi / dp,
        2 * psi + (2 + k) * psi / dp,
        (4 + k) * psi / dp,
    ]
    for stage, wanted in enumerate(stages):
        found = state_bytes("ZeRO's fp16", psi, dp, stage)
        assert sum(found.values()) == pytest.approx(wanted)


def test_only_the_stage_that_splits_a_kind_changes_it() -> None:
    kinds = [state_bytes("bf16", 8, 4, stage) for stage in range(4)]
    assert [s["optimizer"] for s in kinds] == [96, 24, 24, 24]
    assert [s["gradients"] for s in kinds] == [32, 32, 8, 8]
    assert [s["parameters"] for s in kinds] == [16, 16, 16, 4]


def test_fp32_is_what_torch_keeps() -> None:
    linear = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 7)).sum().backward()
    optimizer.step()
    n = sum(p.numel() for p in linear.parameters())
    moments = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if t.numel() > 1
    )
    assert state_bytes("fp32", n) == {
        "parameters": sum(p.nbytes for p in linear.parameters()),
        "gradients": sum(p.grad.nbytes for p in linear.parameters() if p.grad is not None),
        "optimizer": moments,
    }


def test_fp32_accumulation_costs_two_bytes_more_than_zero_counts() -> None:
    assert sum(STATES["ZeRO's fp16"].values()) == 16
    assert sum(STATES["bf16"].values()) == 18


@pytest.mark.parametrize(("precision", "zero"), [("fp8", 0), ("bf16", 4), ("bf16", -1)])
def test_bad_input_is_named(precision: str, zero: int) -> None:
    with pytest.raises(ValueError, match=f"precision='{precision}', zero={zero}: not one of fp32"):
        state_bytes(precision, 1, 1, zero)
