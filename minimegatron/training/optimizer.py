"""The optimizer step on shards: AdamW, the global gradient norm, clipping, the learning rate.

AdamW works element by element, so each rank steps its own shards and sends nothing. The norm does
not: it is a sum over *all* elements, of which a rank holds some alone (shards: add over tp) and
some together with its tensor-parallel neighbours (layer norms, biases after a row split: count
once, or clipping cuts too hard as soon as tp > 1). Megatron-LM: `get_grad_norm_fp32` and
`param_is_not_tensor_parallel_duplicate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minimegatron.data_parallel.pieces import pieces
from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.ledger import phase
from minimegatron.ranks.mesh import Axis


class MasterAdamW(torch.optim.AdamW):
    """AdamW on what this rank updates (pieces), half-precision ones through a float32 master copy.

    The masters start from the model's values when this is made, and overwrite them in every step.
    """

    def __init__(self, model: torch.nn.Module, weight_decay: float, **options: Any) -> None:
        self.model = model
        self.pieces = pieces(model)
        self.masters = [
            piece.values.float() if piece.values.itemsize < 4 else piece.values
            for piece in self.pieces
        ]
        named = [(p.parameter, m) for p, m in zip(self.pieces, self.masters, strict=True)]
        super().__init__(_groups(named, weight_decay), **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates the masters, then the model; under ZeRO the ranks then trade what they have."""
        for piece, master in zip(self.pieces, self.masters, strict=True):
            gradient = piece.gradient
            master.grad = None if gradient is None else gradient.to(master.dtype)
        super().step()
        for piece, master in zip(self.pieces, self.masters, strict=True):
            master.grad = None
            if piece.values.dtype != master.dtype:
                piece.values.copy_(master)
        if zero := getattr(self.model, "zero", None):
            zero.finish_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the model's gradients."""
        self.model.zero_grad(set_to_none)


def _groups(tensors: Sequence[tuple[Tensor, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Pairs of (parameter, what is updated for it) in two groups: matrices decay, others do not."""
    return [
        {"params": [t for p, t in tensors if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [t for p, t in tensors if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: torch.nn.Module,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """torch's fused AdamW with weight decay on matrices only; with masters where they are needed.

    Decay pulls a weight towards zero. That is a sensible prior for a matrix; for a bias or the
    scale of a layer norm (one dimension) it is not, and GPT-2 and Megatron-LM leave them out.
    Half-precision parameters are updated in float32, ZeRO's by their owner (`MasterAdamW`).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": lr, "betas": betas, "fused": True}
    if getattr(model, "zero", None) or any(p.itemsize < 4 for p in trainable):
        return MasterAdamW(model, weight_decay, **options)
    return torch.optim.AdamW(_groups([(p, p) for p in trainable], weight_decay), **options)


def gradient_axis(model: GPT) -> Axis:
    """The ranks that hold different parts of the gradient: tp, pp, and dp where ZeRO shards it."""
    mesh, names = model.mesh, ("tp", "pp", "dp") if getattr(model, "zero", None) else ("tp", "pp")
    return mesh.axis(*[name for name in names if mesh.sizes[name] > 1] or ["tp"])


@torch.no_grad()
def gradient_norm(model: GPT) -> Tensor:
    """The Euclidean norm of the whole model's gradient, the same scalar on every rank.

    Collective over `gradient_axis`: call it on all ranks, after `finish_gradients`.
    """
    total = torch.zeros((), device=model.mesh.device)
    for piece in pieces(model):  # tied parameters come once
        copy = model.dense_name(piece.name) != piece.name  # of a tied embedding: once
        counted_here = not copy and (model.is_sharded(piece.name) or model.mesh.tp.rank == 0)
        if piece.gradient is not None and counted_here:
            square = torch.linalg.vector_norm(piece.gradient).square()
            total = total.to(square.dtype) + square
    with phase("optimizer"):
        return all_reduce(total, gradient_axis(model)).sqrt()


@torch.no_grad()
def clip_gradients(model: GPT, max_norm: float) -> Tensor:
    """Scales all gradients to a global norm of at most `max_norm`; returns the norm before."""
    norm = gradient_norm(model)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # on the device: no wait for the number
    gradients = [piece.gradient for piece in pieces(model) if piece.gradient is not None]
    torch._foreach_mul_(gradients, scale)
    return norm


def learning_rate(step: int, steps: int, peak: float, warmup: int = 0, floor: float = 0.1) -> float:
    """The rate of `step` (from 0) of `steps`: a linear warm-up, then a cosine down to floor * peak.

    The warm-up gives AdamW time to estimate the size of gradients; step 0 already learns a little.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (floor + (1 - floor) * cosine)
