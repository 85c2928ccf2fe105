"""Mixed precision: compute in 16 bits, keep in 32 what 16 bits cannot hold.

"Mixed Precision Training", arXiv:1710.03740, section 3: weights and activations in half precision,
a *master copy* of the weights in float32 (1 + a tiny update is 1 in half precision), gradients
summed in float32, and the loss multiplied by a scale before backward, so that small gradients do
not fall below what fp16 can hold. The scale looks for its own size: an overflow lowers it, a long
time without one raises it. Megatron-LM: `DynamicGradScaler` in
`megatron/core/optimizer/grad_scaler.py`, `Float16OptimizerWithFloat16Params`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minimegatron.data_parallel.pieces import pieces
from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.ledger import phase
from minimegatron.training.optimizer import clip_gradients, gradient_axis

# None: the model stays as it was made.
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# The largest power of two that float32, the loss's dtype, can hold.
LARGEST_SCALE = 2.0**127


@dataclass
class DynamicLossScaler:
    """The factor on the loss: lower after overflows, higher after a long time without.

    The first `hysteresis` - 1 overflows are forgiven; each further one multiplies the scale by
    `backoff_factor`. Only when the scale grows are they forgiven anew: good steps alone restore
    nothing. `growth_interval` good steps in a row multiply it by `growth_factor`. It stays
    between `min_scale` and `max_scale` (None: 2**127). The defaults are Megatron-LM's; others are
    settings:

        torch.amp.GradScaler  DynamicLossScaler(2**16, growth_interval=2000, hysteresis=1,
                                                min_scale=0.0)
        Apex                  the same with max_scale=2**24

    `scale` is the factor now. Raises ValueError for settings that cannot work.
    """

    initial_scale: float = 2.0**32
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 1000
    hysteresis: int = 2
    min_scale: float = 1.0
    max_scale: float | None = None

    def __post_init__(self) -> None:
        self.scale = float(self.initial_scale)
        self.highest = LARGEST_SCALE if self.max_scale is None else self.max_scale
        self.good_steps = 0  # in a row, since the last overflow or growth
        self.overflows_left = self.hysteresis  # the last of them lowers the scale
        rules = {
            "growth_factor > 1": self.growth_factor > 1,
            "0 < backoff_factor < 1": 0 < self.backoff_factor < 1,
            "growth_interval >= 1": self.growth_interval >= 1,
            "hysteresis >= 1": self.hysteresis >= 1,
            "initial_scale > 0": self.scale > 0,
            "0 <= min_scale <= initial_scale": 0 <= self.min_scale <= self.scale,
            f"initial_scale <= {self.highest}": self.scale <= self.highest,
        }
        if broken := [rule for rule, kept in rules.items() if not kept]:
            raise ValueError(f"{self} does not have {' and '.join(broken)}")

    def update(self, found_inf: bool) -> None:
        """After a step: `found_inf` says whether any gradient, on any rank, was not finite."""
        if found_inf:
            self.good_steps = 0
            self.overflows_left -= 1
            if self.overflows_left <= 0:
                self.scale = max(self.scale * self.backoff_factor, self.min_scale)
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.good_steps = 0
            self.overflows_left = self.hysteresis
            self.scale = min(self.scale * self.growth_factor, self.highest)


def half_precision(model: GPT, dtype: torch.dtype) -> GPT:
    """Casts the model to `dtype`, in place; gradients are still kept, and summed, in float32.

    Drops the gradients there are. Make the optimizer afterwards: it keeps float32 masters then.
    Raises ValueError for another dtype than float16 and bfloat16, and for bfloat16 on a GPU that
    cannot compute in it.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"dtype={dtype}: half precision is torch.float16 or torch.bfloat16")
    on_gpu = model.mesh.device.type == "cuda"
    if dtype == torch.bfloat16 and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"{torch.cuda.get_device_name()} has no bf16: use fp16 or fp32")
    model.zero_grad()
    model.to(dtype)
    for parameter in model.parameters():
        parameter.grad_dtype = torch.float32
    return model


@torch.no_grad()
def unscale_gradients(model: GPT, scale: float) -> None:
    """Divides this rank's gradients by the loss scale: call it before their norm is taken."""
    if getattr(model.gradient_reducer, "feedback", False) and scale != 1:
        raise ValueError(
            "error feedback keeps part of a gradient for a later step, which has another loss "
            "scale: use precision='bf16', or compress_gradients(..., feedback=False)"
        )
    for piece in pieces(model):
        if piece.gradient is not None:
            piece.gradient.div_(scale)


@torch.no_grad()
def found_overflow(model: GPT) -> bool:
    """Whether any gradient is inf or nan, on any rank that holds a part of the model: collective.

    One number a rank, whose maximum all of them take: they must skip the same steps.
    """
    bad = torch.zeros((), device=model.mesh.device)
    for piece in pieces(model):
        if piece.gradient is not None:
            bad = torch.maximum(bad, piece.gradient.isfinite().logical_not().any().float())
    with phase("optimizer"):
        return bool(all_reduce(bad, gradient_axis(model), "max"))


def optimizer_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    scaler: DynamicLossScaler | None = None,
) -> bool:
    """Unscale, look for overflow, clip, step, in this order; whether the step was taken.

    After `finish_gradients`, with gradients of the loss times `scaler.scale` (None: times 1, and
    every step is taken). On overflow nothing changes but the scaler, on every rank alike.
    """
    if scaler is not None:
        unscale_gradients(model, scaler.scale)
        overflow = found_overflow(model)
        scaler.update(overflow)
        if overflow:
            return False
    clip_gradients(model, max_norm)
    optimizer.step()
    return True
