"""Bytes for a parameter, against the terms that papers and documentation state."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_what_our_model_keeps(dtype: torch.dtype) -> None:
    """Ours sums gradients in float32 in fp16 too, where Megatron copies them: its bf16 row."""
    model = mm.half_precision(mm.GPT(mm.GPTConfig(37, 12, 16, 1, 4)), dtype)
    optimizer = mm.make_optimizer(model)
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    model.loss(tokens, tokens).backward()
    mm.finish_gradients(model)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step()
    state = [t for of in optimizer.state.values() for t in of.values() if t.dim()]
    n = sum(p.numel() for p in model.parameters())
    assert state_bytes("bf16", n) == {
        "parameters": sum(p.nbytes for p in model.parameters()),
        "gradients": gradients,
        "optimizer": sum(t.nbytes for t in [*optimizer.masters, *state]),
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_keeps_on_a_rank_what_the_table_says(stage: int) -> None:
    def keep(mesh: mm.Mesh) -> tuple[int, int, int]:
        model = mm.half_precision(mm.GPT(mm.GPTConfig(37, 12, 16, 2, 4), mesh), torch.bfloat16)
        if stage:
            mm.Zero(model, stage)
        optimizer = mm.make_optimizer(model)
        tokens = torch.zeros(2, 12, dtype=torch.int64)
        mm.accumulate_gradients(model, [(tokens, tokens)])
        mm.finish_gradients(model)
        grads = model.zero.gradients if stage > 1 else [p.grad for p in model.parameters()]
        optimizer.step()
        state = [t for of in optimizer.state.values() for t in of.values() if t.dim()]
        held = model.zero.shards if stage == 3 else list(model.parameters())
        return tuple(
            sum(t.nbytes for t in ts) for ts in (held, grads, [*optimizer.masters, *state])
        )

    n = sum(p.numel() for p in mm.GPT(mm.GPTConfig(37, 12, 16, 2, 4)).parameters())
    wanted = state_bytes("bf16", n, dp=4, zero=stage)  # 4 divides n: no padding
    ranks = mm.launch(keep, dp=4)
    kinds = ("parameters", "gradients", "optimizer")
    # A shard crosses parameters, but is the same in bytes on every rank.
    assert all(dict(zip(kinds, rank, strict=True)) == wanted for rank in ranks)


def test_fp32_accumulation_costs_two_bytes_more_than_zero_counts() -> None:
    assert sum(STATES["ZeRO's fp16"].values()) == 16
    assert sum(STATES["bf16"].values()) == 18


@pytest.mark.parametrize(("precision", "zero"), [("fp8", 0), ("bf16", 4), ("bf16", -1)])
def test_bad_input_is_named(precision: str, zero: int) -> None:
    with pytest.raises(ValueError, match=f"precision='{precision}', zero={zero}: not one of fp32"):
        state_bytes(precision, 1, 1, zero)
