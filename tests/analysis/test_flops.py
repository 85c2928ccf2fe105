"""Formulas against the model itself and torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import minimegatron as mm
from minimegatron.analysis.flops import (
    flops_per_token,
    hardware_flops_per_token,
    parameter_count,
    parameters_per_rank,
    utilization,
    whole_parameters,
)

TOKENS = 2 * 12


def counted(model):
    tokens = torch.zeros(2, model.config.seq_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).backward()
    return counter.get_total_flops()


def config(**changes):
    return dataclasses.replace(mm.GPTConfig(37, 12, 16, 3, 4), **changes)


@pytest.mark.parametrize("layer_norm", ["pre", "post"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(layer_norm, tied):
    c = config(layer_norm=layer_norm, tie_embeddings=tied)
    assert parameter_count(c) == sum(t.numel() for t in mm.GPT(c).full_state_dict().values())


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("changes", [{}, {"layer_norm": "post", "tie_embeddings": False}], ids=str)
def test_parameters_of_a_rank_are_those_that_it_holds(tp, changes):
    c = config(**changes)

    def count(mesh):
        model = mm.GPT(c, mesh)
        whole = (p for name, p in model.named_parameters() if not model.is_sharded(name))
        return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in whole)

    assert set(mm.launch(count, tp=tp)) == {(parameters_per_rank(c, tp), whole_parameters(c))}


def test_narayanans_closed_form_leaves_out_the_final_norm():
    c = config()
    s, h, layers, v = c.seq_length, c.hidden_size, c.num_layers, c.vocab_size
    paper = 12 * layers * h**2 * (1 + 13 / (12 * h) + (v + s) / (12 * layers * h))
    assert parameter_count(c) == pytest.approx(paper + 2 * h, abs=1e-6)


def test_gpt2_has_124_million_parameters():
    gpt2 = mm.GPTConfig(50257, 1024, 768, 12, 12)
    assert parameter_count(gpt2) == 124_439_808


def test_flops_are_those_that_torch_counts_in_a_step():
    c = config(attention="explicit")
    assert counted(mm.GPT(c)) == flops_per_token(c) * TOKENS


@pytest.mark.parametrize("recompute", [None, "selective", "full"])
def test_hardware_flops_are_those_that_torch_counts_in_a_step(recompute):
    c = config(attention="explicit", recompute=recompute)
    assert counted(mm.GPT(c)) == hardware_flops_per_token(c) * TOKENS


@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_share_the_flops_evenly(tp):
    c = config(attention="explicit", vocab_size=40)  # divides: padding is arithmetic too
    assert mm.launch(lambda mesh: counted(mm.GPT(c, mesh)), tp=tp) == (
        [flops_per_token(c) * TOKENS // tp] * tp
    )


def test_flops_are_the_papers_formulas():
    c = config()
    s, h, layers, v = c.seq_length, c.hidden_size, c.num_layers, c.vocab_size
    narayanan = 96 * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))  # full recompute
    assert hardware_flops_per_token(config(recompute="full")) == pytest.approx(narayanan)
    korthikanti = 72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    assert flops_per_token(c) == pytest.approx(korthikanti)
    # The paper prints s/3h, three forwards of the scores; one runs (NVIDIA/Megatron-LM#523).
    selective = 72 * layers * h**2 * (1 + 2 * s / (9 * h) + v / (12 * layers * h))
    assert hardware_flops_per_token(config(recompute="selective")) == pytest.approx(selective)


def test_mfu_and_hfu_differ_by_what_is_computed_twice():
    c = config(recompute="full")
    once, twice = flops_per_token(c), hardware_flops_per_token(c)
    assert utilization(c, tokens_per_second=10, peak=20 * twice) == (once / twice / 2, 0.5)
    plain = utilization(config(), 10, 20 * once)
    assert plain.mfu == plain.hfu == 0.5
