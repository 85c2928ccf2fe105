"""What a step sends, counted, against the ledgers of our own models."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

import minimegatron as mm
from minimegatron.analysis.flops import parameters_per_rank
from minimegatron.analysis.traffic import (
    data_parallel_wire_bytes,
    pipeline_message_bytes,
    tensor_parallel_traffic,
)

CONFIG = mm.GPTConfig(37, 12, 16, 3, 4)
FLOAT64 = 8  # bytes


def sent(log: mm.Ledger, axis: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(op, phase) -> how many, and their bytes, without what comes after the backward pass."""
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    for r in log.select(axis=axis):
        if r.phase in ("forward", "backward", "recompute"):
            n, size = rows.get((r.op, r.phase), (0, 0))
            rows[r.op, r.phase] = (n + 1, size + r.bytes)
    return rows


def counted(config: mm.GPTConfig, *args: int) -> dict[tuple[str, str], tuple[int, int]]:
    n, size = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for t in tensor_parallel_traffic(config, *args):
        n[t.op, t.phase] += t.count
        size[t.op, t.phase] += t.bytes
    return {key: (n[key], size[key]) for key in n}


@pytest.mark.parametrize(
    ("tp", "microbatches", "changes"),
    [
        (4, 2, {}),
        (2, 1, {"layer_norm": "post", "tie_embeddings": False}),
        (2, 1, {"attention": "explicit", "dropout": 0.1}),
        (2, 2, {"recompute": "full"}),
        (2, 1, {"recompute": "selective"}),
        (4, 2, {"sequence_parallel": True}),
        (2, 1, {"sequence_parallel": True, "keep_gathered": True}),
        (2, 1, {"sequence_parallel": True, "recompute": "full"}),
        (2, 1, {"sequence_parallel": True, "layer_norm": "post", "tie_embeddings": False}),
    ],
    ids=str,
)
def test_tensor_parallel_traffic_is_what_the_ledger_holds(
    tp: int, microbatches: int, changes: dict
) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    report = mm.parity(config, tp=tp, batch=4, microbatches=microbatches, steps=1)
    assert report.ok
    wanted = counted(config, 4, tp, microbatches, FLOAT64)
    for log in report.ledger:
        assert sent(log, "tp") == wanted


def test_a_layer_sends_what_narayanan_counts() -> None:
    b, s, h, t = 4, CONFIG.seq_length, CONFIG.hidden_size, 4
    rows = [r for r in tensor_parallel_traffic(CONFIG, b, t) if r.what == "layers"]
    elements = sum(r.wire_bytes for r in rows) / 4
    assert elements == CONFIG.num_layers * 8 * b * s * h * (t - 1) / t


def test_sequence_parallelism_sends_the_same_or_a_quarter_more() -> None:
    def layers(**changes: bool) -> float:
        config = dataclasses.replace(CONFIG, **changes)
        rows = tensor_parallel_traffic(config, 4, 4)
        return sum(r.wire_bytes for r in rows if r.what == "layers")

    plain = layers()
    assert layers(sequence_parallel=True, keep_gathered=True) == plain
    assert layers(sequence_parallel=True) == 1.25 * plain


@pytest.mark.parametrize(("tp", "dp"), [(2, 2), (1, 4)])
def test_data_parallel_traffic_is_the_gradients_and_one_number(tp: int, dp: int) -> None:
    report = mm.parity(CONFIG, tp=tp, dp=dp, steps=1)
    parameters = parameters_per_rank(CONFIG, tp)
    weights = 8 * 2 * (dp - 1) / dp  # the ranks' numbers of tokens, a float64
    wanted = data_parallel_wire_bytes(parameters, dp, gradient=FLOAT64) + weights
    for log in report.ledger:
        assert log.wire_bytes(axis="dp", phase="backward") == pytest.approx(wanted)


def test_more_sequences_make_more_tp_traffic_and_no_more_dp_traffic() -> None:
    small = dataclasses.replace(CONFIG, num_layers=1)
    two, four = (mm.parity(small, tp=2, dp=2, batch=b, steps=1).ledger[0] for b in (4, 8))
    assert four.bytes(axis="tp", phase="forward") == 2 * two.bytes(axis="tp", phase="forward")
    assert four.bytes(axis="dp", phase="backward") == two.bytes(axis="dp", phase="backward")


def test_zero_1_and_2_send_what_plain_dp_sends_and_3_half_as_much_again() -> None:
    plain, one, two, three = (data_parallel_wire_bytes(1000, 4, zero) for zero in range(4))
    assert plain == one == two == 4 * 2 * 1000 * 3 / 4
    assert three == 1.5 * plain
    # bf16 weights over fp32 gradients: less, and not 1.5 times.
    assert data_parallel_wire_bytes(1000, 4, 1, gradient=4, weight=2) == 6 * 1000 * 3 / 4


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_what_zero_sends_is_what_the_ledger_holds(zero: int) -> None:
    report = mm.parity(CONFIG, dp=4, zero=zero, steps=1)
    parameters = parameters_per_rank(CONFIG, 1)  # a multiple of 4: no padding
    wanted = data_parallel_wire_bytes(parameters, 4, zero, gradient=FLOAT64, weight=FLOAT64)
    for log in report.ledger:
        moved = [r for r in log.select(axis="dp") if r.op in ("all_gather", "reduce_scatter")]
        assert sum(r.wire_bytes for r in moved if r.phase != "other") == pytest.approx(wanted)


def test_a_pipeline_sends_one_activation_a_micro_batch() -> None:
    config = mm.GPTConfig(51200, 2048, 12288, 96, 96)
    bsh = 2 * 2048 * 12288
    assert pipeline_message_bytes(config, 2) == 2 * bsh
    assert pipeline_message_bytes(config, 2, tp=8, element=4) == 4 * bsh
    assert pipeline_message_bytes(config, 2, tp=8, scatter_gather=True) == 2 * bsh / 8
    split = dataclasses.replace(config, sequence_parallel=True)
    assert pipeline_message_bytes(split, 2, tp=8) == 2 * bsh / 8


def test_a_message_of_a_pipeline_is_what_the_ledger_calls_one() -> None:
    def pass_on(mesh: mm.Mesh) -> int:
        x = torch.zeros(2, CONFIG.seq_length, CONFIG.hidden_size)
        with mm.ledger() as log:
            mm.send(x, mesh.tp, 1) if mesh.rank == 0 else mm.recv(x, mesh.tp, 0)
        return log.bytes("send")

    assert mm.launch(pass_on, tp=2) == [pipeline_message_bytes(CONFIG, 2, element=4), 0]


def test_one_rank_sends_nothing() -> None:
    assert tensor_parallel_traffic(CONFIG, 4, 1) == []
    assert data_parallel_wire_bytes(1000, 1) == data_parallel_wire_bytes(1000, 1, 3) == 0
