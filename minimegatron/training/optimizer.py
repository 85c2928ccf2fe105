"""The optimizer step on shards: AdamW, the global gradient norm, clipping, the learning rate.

AdamW works element by element, so each rank steps its own shards and sends nothing. The norm does
not: it is a sum over *all* elements, of which a rank holds some alone (shards: add over tp) and
some together with its tensor-parallel neighbours (layer norms, biases after a row split: count
once, or clipping cuts too hard as soon as tp > 1). Megatron-LM: `get_grad_norm_fp32` and
`param_is_not_tensor_parallel_duplicate`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.ledger import phase


def make_optimizer(
    model: torch.nn.Module,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """torch's fused AdamW with weight decay on matrices only.

    Decay pulls a weight towards zero. That is a sensible prior for a matrix; for a bias or the
    scale of a layer norm (one dimension) it is not, and GPT-2 and Megatron-LM leave them out.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim >= 2]
    vectors = [p for p in trainable if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


@torch.no_grad()
def gradient_norm(model: GPT) -> Tensor:
    """The Euclidean norm of the whole model's gradient, the same scalar on every rank.

    Collective over tp: call it on all ranks, after `finish_gradients`.
    """
    axis = model.mesh.tp
    total = torch.zeros((), device=model.mesh.device)
    for name, parameter in model.named_parameters():  # tied parameters come once
        counted_here = model.is_sharded(name) or axis.rank == 0
        if parameter.grad is not None and counted_here:
            square = torch.linalg.vector_norm(parameter.grad).square()
            total = total.to(square.dtype) + square
    with phase("optimizer"):
        return all_reduce(total, axis).sqrt()


@torch.no_grad()
def clip_gradients(model: GPT, max_norm: float) -> Tensor:
    """Scales all gradients to a global norm of at most `max_norm`; returns the norm before."""
    norm = gradient_norm(model)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # on the device: no wait for the number
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
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
