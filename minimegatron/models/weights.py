"""Initial weights that are the same, bit for bit, however the model is split.

If each rank drew its own shards, the weights would depend on the split, and no parallel run could
be compared with another. So one number is drawn from torch's generator; with the parameter's name
it seeds a generator of that parameter's own, which draws the dense tensor in float32 on the CPU;
each rank keeps its part. Megatron-LM: `_initialize_affine_weight_cpu` in
`megatron/core/tensor_parallel/layers.py`. The values are GPT-2's: normal with deviation 0.02,
projections onto the residual path scaled by 1/sqrt(2 layers), "to account for the accumulation on
the residual path" (Radford et al. 2019, section 2.3), biases 0, LayerNorms 1.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from minimegatron.models.config import GPTConfig

_ONTO_RESIDUAL = ("out.weight", "down.weight")


def draw_seed() -> int:
    """One draw from torch's generator: all the randomness that building a model takes from it."""
    return int(torch.randint(2**31, (), dtype=torch.int64, device="cpu"))


def initial(name: str, shape: tuple[int, ...], config: GPTConfig, seed: int) -> Tensor:
    """The dense initial value of the parameter `name`, in float32 on the CPU."""
    if len(shape) == 1:
        value = 0.0 if name.endswith("bias") else 1.0
        return torch.full(shape, value, dtype=torch.float32, device="cpu")
    std = config.init_std
    if name.endswith(_ONTO_RESIDUAL):
        std /= math.sqrt(2 * config.num_layers)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4]))
    dense = torch.empty(shape, dtype=torch.float32, device="cpu")
    return dense.normal_(0.0, std, generator=generator)
