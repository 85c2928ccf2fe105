"""A product whose weight gradient waits: the backward split into I and W.

Nobody waits for the gradient of a weight; the stage before waits for that of the input. "Zero
Bubble Pipeline Parallelism", arXiv:2401.10241, section 2, computes them apart. Which of the two a
backward makes is decided in the forward pass, so the layers are told there (`later`). Its authors'
fork of Megatron-LM calls the list `WeightGradStore`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Later = list[Callable[[], None]]  # the work that W does, one entry a product


class _WeightLater(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, later: Later) -> Tensor:
        ctx.save_for_backward(x)
        # Not saved: inside a recomputation a saved parameter comes back as another tensor, whose
        # gradient nobody would see.
        ctx.weight, ctx.bias, ctx.later = weight, bias, later
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,), weight, bias = ctx.saved_tensors, ctx.weight, ctx.bias

        def add() -> None:
            rows = grad.flatten(0, -2)
            _accumulate(weight, lambda: rows.t() @ x.flatten(0, -2))
            if bias is not None:
                _accumulate(bias, lambda: rows.sum(0))

        ctx.later.append(add)
        return grad @ weight, None, None, None


@torch.no_grad()
def _accumulate(parameter: Tensor, gradient: Callable[[], Tensor]) -> None:
    """What autograd does with a leaf's gradient; its hooks do not run."""
    if parameter.requires_grad:
        made = gradient().to(getattr(parameter, "grad_dtype", None) or parameter.dtype)
        parameter.grad = made if parameter.grad is None else parameter.grad.add_(made)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, later: Later | None) -> Tensor:
    """X times A, plus b: (..., in) -> (..., out). `later`, if a list, gets the weight's work."""
    if later is None or not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    result: Tensor = _WeightLater.apply(x, weight, bias, later)
    return result
