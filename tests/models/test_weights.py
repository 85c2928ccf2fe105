"""The same seed gives the same weights at every split, bit for bit, and GPT-2's distribution."""

from __future__ import annotations

import math

import pytest
import torch

import minimegatron as mm

SMALL = {"vocab_size": 51, "seq_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 4}


def build(mesh, config):
    torch.manual_seed(11)
    state = mm.GPT(config, mesh).full_state_dict()
    return state, torch.get_rng_state()


@pytest.mark.parametrize("tie", [True, False])
def test_weights_and_torchs_generator_are_the_same_bits_at_every_split(tie):
    config = mm.GPTConfig(**SMALL, tie_embeddings=tie)
    reference, generator = build(mm.single(), config)
    for split in ({"tp": 2}, {"tp": 4}, {"tp": 2, "dp": 2}, {"dp": 2}):
        for state, after in mm.launch(build, config, **split):
            assert torch.equal(after, generator)
            assert all(torch.equal(value, reference[name]) for name, value in state.items())


def test_building_takes_one_draw_from_torchs_generator():
    torch.manual_seed(11)
    torch.randint(2**31, ())
    expected = torch.rand(4)
    for layers in (1, 3):
        torch.manual_seed(11)
        mm.GPT(mm.GPTConfig(**(SMALL | {"num_layers": layers})))
        assert torch.equal(torch.rand(4), expected)


def test_another_seed_gives_other_weights_and_no_two_parameters_are_alike():
    config = mm.GPTConfig(**SMALL, tie_embeddings=False)
    torch.manual_seed(0)
    first = mm.GPT(config).full_state_dict()
    second = mm.GPT(config).full_state_dict()  # the generator has moved on
    matrices = [name for name, value in first.items() if value.dim() == 2]
    assert not any(torch.equal(first[name], second[name]) for name in matrices)
    starts = {tuple(first[name].flatten()[:4].tolist()) for name in matrices}
    assert len(starts) == len(matrices)


def test_the_distribution_is_gpt2s():
    config = mm.GPTConfig(500, 100, hidden_size=128, num_layers=8, num_heads=4, init_std=0.05)
    torch.manual_seed(0)
    for name, value in mm.GPT(config).full_state_dict().items():
        if value.dim() == 2:
            onto_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.05 / math.sqrt(2 * 8) if onto_residual else 0.05
            # five standard errors of a deviation and a mean over n draws
            band = 5 / math.sqrt(value.numel())
            assert abs(value.std().item() / std - 1) < band, name
            assert abs(value.mean().item() / std) < band, name
        else:
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight"))))


def test_weights_do_not_depend_on_the_default_dtype():
    reference, _ = build(mm.single(), mm.GPTConfig(**SMALL))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        state, _ = build(mm.single(), mm.GPTConfig(**SMALL))
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(value, reference[name].double()) for name, value in state.items())
