"""Fused functions are the eager ones within rounding, forward and backward, in fewer kernels."""

from __future__ import annotations

import math

import pytest
import torch

from minimegatron.models.fusion import bias_gelu, causal_softmax, fused


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def both_ways(function, *inputs):
    inputs = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
    y = function(*inputs)
    y.backward(draw(*y.shape))
    return [y.detach(), *(x.grad for x in inputs if isinstance(x, torch.Tensor))]


def test_bias_gelu_is_the_formula():
    x, bias = draw(3, 5), draw(5)
    z = x + bias
    wanted = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    torch.testing.assert_close(bias_gelu(x, bias), wanted)


def test_causal_softmax_looks_at_the_past_only():
    scores = draw(2, 3, 4, 4)
    wanted = torch.zeros_like(scores)
    for i in range(4):
        past = torch.exp(0.5 * scores[..., i, : i + 1])
        wanted[..., i, : i + 1] = past / past.sum(-1, keepdim=True)
    torch.testing.assert_close(causal_softmax(scores, 0.5), wanted)


CASES = [
    (bias_gelu, (draw(6, 8), draw(8))),
    pytest.param(causal_softmax, (draw(2, 2, 8, 8), 0.3), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_a_fused_function_equals_the_eager_one_and_is_one_kernel_each_way(function, inputs):
    from torch._inductor.utils import run_fw_bw_and_get_code

    torch.compiler.reset()
    compiled = fused(function)
    leaf = inputs[0].clone().requires_grad_()
    _, programs = run_fw_bw_and_get_code(lambda: compiled(leaf, *inputs[1:]))
    assert [program.count("= async_compile.cpp") for program in programs] == [1, 1]
    found, wanted = both_ways(compiled, *inputs), both_ways(function, *inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_without_a_compiler_a_word_and_the_function_itself(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fused(bias_gelu) is bias_gelu
    assert "needs a C++ compiler, and no-such-compiler is not here" in capsys.readouterr().out
