"""Recompute: keep the inputs of a function, and compute the rest again when backward needs it.

Backward needs most of what forward computed. Kept, it is the larger part of a GPU's memory; thrown
away, it costs a second forward pass ("Training Deep Nets with Sublinear Memory Cost",
arXiv:1604.06174). Section 5 of arXiv:2205.05198 recomputes the attention core only: much memory,
little arithmetic. The second run must draw the same dropout masks, so both streams go back to where
they were before the first; and it sends again whatever the first one sent. Megatron-LM:
`CheckpointFunction` in `megatron/core/tensor_parallel/random.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from minimegatron.ranks.ledger import phase
from minimegatron.tensor_parallel.dropout import DropoutStreams


class _Recompute(Function):
    @staticmethod
    def forward(
        ctx: Any, function: Any, streams: DropoutStreams, wanted: Tensor, *inputs: Tensor
    ) -> Tensor:
        ctx.function, ctx.streams, ctx.states = function, streams, streams.states()
        kind = inputs[0].device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.save_for_backward(*inputs)
        return function(*inputs)  # without a graph: nothing inside is saved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.autograd._is_checkpoint_valid():  # type: ignore[attr-defined]
            raise RuntimeError("recompute needs loss.backward() without inputs=: it fills .grad")
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
        now = ctx.streams.states()
        ctx.streams.restore(ctx.states)
        with torch.enable_grad(), phase("recompute"), torch.autocast(*ctx.autocast):
            output = ctx.function(*inputs)
        ctx.streams.restore(now)
        if output.requires_grad:  # not where all inside is frozen
            torch.autograd.backward(output, grad)
        return None, None, None, *(x.grad for x in inputs)


def recompute(function: Callable[..., Tensor], streams: DropoutStreams, *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, of which only `inputs` are saved: backward runs it again.

    `function` takes tensors and returns one; its dropout draws from `streams`. Collectives of the
    second run have the phase "recompute". Parameters inside get their `.grad`; so backward raises
    RuntimeError under `torch.autograd.grad` and `backward(inputs=...)`.
    """
    # Something must want a gradient, or the parameters inside get none behind frozen ones.
    wanted = torch.empty(0, requires_grad=torch.is_grad_enabled())
    result: Tensor = _Recompute.apply(function, streams, wanted, *inputs)
    return result
