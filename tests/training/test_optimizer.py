"""The optimizer step, against dense arithmetic."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm
from minimegatron.training.optimizer import (
    clip_gradients,
    gradient_norm,
    learning_rate,
    make_optimizer,
)

CONFIG = mm.GPTConfig(vocab_size=19, seq_length=6, hidden_size=16, num_layers=1, num_heads=4)


def model_with_gradients(mesh):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = mm.GPT(CONFIG, mesh)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(19, (2, 6), generator=generator)
    model.loss(tokens, tokens.roll(1)).backward()
    return model


def dense_norm(gradients):
    return torch.cat([g.flatten() for g in gradients.values()]).norm()


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_norm_is_that_of_the_dense_gradient_on_every_rank(tp):
    def run(mesh):
        model = model_with_gradients(mesh)
        with mm.ledger() as log:
            norm = gradient_norm(model)
        return norm, dense_norm(model.full_gradients()), log.count(phase="optimizer")

    results = mm.launch(run, tp=tp)
    for norm, wanted, sent in results:
        torch.testing.assert_close(norm, wanted, rtol=1e-12, atol=0)
        assert torch.equal(norm, results[0][0])
        assert sent == (tp > 1)


@pytest.mark.parametrize("part", [0.5, 2.0])
def test_clipping_scales_all_gradients_by_one_number_and_only_down(part):
    def run(mesh):
        model = model_with_gradients(mesh)
        before = model.full_gradients()
        norm = clip_gradients(model, part * float(dense_norm(before)))
        return norm, before, model.full_gradients()

    for norm, before, after in mm.launch(run, tp=2):
        torch.testing.assert_close(norm, dense_norm(before))
        for name, gradient in after.items():
            wanted = before[name] * min(1.0, part)
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=0)


def test_weight_decay_is_on_matrices_only_and_every_parameter_is_trained_once():
    model = mm.GPT(CONFIG)
    model.layers["0"].mlp.up.weight.requires_grad_(False)
    optimizer = make_optimizer(model, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    others = {id(p) for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in trained.items() if id(p) in decayed} == {
        n for n in trained if n.endswith("weight") and "ln" not in n and "norm" not in n
    }
    assert decayed | others == {id(p) for p in trained.values()}
    assert not decayed & others
    assert all(group["fused"] for group in optimizer.param_groups)


def test_the_rate_warms_up_linearly_then_falls_as_a_cosine_to_the_floor():
    rates = [learning_rate(step, 101, 1.0, warmup=20, floor=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[9] == pytest.approx(10 / 20)
    assert rates[19] == rates[20] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half-way down between 1 and 0.1
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[20:], rates[21:], strict=False))
    assert learning_rate(500, 101, 1.0, warmup=20) == pytest.approx(0.1)
    assert learning_rate(0, 1, 1.0) == 1.0
