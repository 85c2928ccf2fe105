"""Formulas against the model itself and torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import minimegatron as mm
from minimegatron.analysis.flops import flops_per_token, parameter_count


def config(**changes):
    return dataclasses.replace(mm.GPTConfig(37, 12, 16, 3, 4), **changes)


@pytest.mark.parametrize("layer_norm", ["pre", "post"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(layer_norm, tied):
    c = config(layer_norm=layer_norm, tie_embeddings=tied)
    assert parameter_count(c) == sum(t.numel() for t in mm.GPT(c).full_state_dict().values())


def test_gpt2_has_124_million_parameters():
    gpt2 = mm.GPTConfig(50257, 1024, 768, 12, 12)
    assert parameter_count(gpt2) == 124_439_808


def test_flops_are_those_that_torch_counts_in_a_step():
    c = config(attention="explicit")
    model = mm.GPT(c)
    tokens = torch.zeros(2, c.seq_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).backward()
    assert counter.get_total_flops() == flops_per_token(c) * tokens.numel()


def test_flops_are_the_papers_formula():
    c = config()
    s, h, layers, v = c.seq_length, c.hidden_size, c.num_layers, c.vocab_size
    paper = 96 * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))  # with recompute
    assert flops_per_token(c) * s == pytest.approx(72 / 96 * paper + 1.5 * s * v * h)
