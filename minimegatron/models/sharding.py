"""One table: how each parameter of a model is split over tensor-parallel ranks.

Everything that must know it (initial weights, the dense state dict, gradients, norms) reads it
here, by the parameter's dense name. Megatron-LM keeps the same facts as attributes of each
parameter: `tensor_model_parallel`, `partition_dim`, `partition_stride`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minimegatron.ranks.collectives import broadcast
from minimegatron.ranks.mesh import Axis
from minimegatron.tensor_parallel.shards import dense_of, shard_of


@dataclass(frozen=True)
class Split:
    """Cut along `dim`, in `blocks` blocks, after padding (`pad`) to the vocabulary's multiple."""

    dim: int
    blocks: int = 1
    pad: bool = False


# By the last two parts of a name. What is not here is whole on every rank.
SPLITS = {
    "word.weight": Split(0, pad=True),
    "head.weight": Split(0, pad=True),
    "qkv.weight": Split(0, blocks=3),
    "qkv.bias": Split(0, blocks=3),
    "out.weight": Split(1),
    "up.weight": Split(0),
    "up.bias": Split(0),
    "down.weight": Split(1),
}


def split_of(name: str) -> Split | None:
    """How the parameter of this dense name is split; None where every rank holds all of it."""
    return SPLITS.get(".".join(name.split(".")[-2:]))


def dense_shape(name: str, shard: Tensor, axis: Axis, vocab_size: int) -> tuple[int, ...]:
    """The shape of the dense tensor that `shard` is a part of, without padding."""
    split, shape = split_of(name), list(shard.shape)
    if split is not None:
        shape[split.dim] = vocab_size if split.pad else shape[split.dim] * axis.size
    return tuple(shape)


def take(name: str, dense: Tensor, axis: Axis) -> Tensor:
    """This rank's part of a dense tensor: a tensor of its own."""
    split = split_of(name)
    if split is None:
        return dense.clone()
    return shard_of(dense, axis, split.dim, split.blocks, split.pad)


def join(name: str, shard: Tensor, axis: Axis, vocab_size: int) -> Tensor:
    """The dense tensor, without padding, from every rank's part: collective."""
    split = split_of(name)
    if split is None:
        return shard.detach().clone()
    dense = dense_of(shard, axis, split.dim, split.blocks)
    return (dense[:vocab_size] if split.pad else dense).clone()


def join_stages(mine: dict[str, Tensor], axis: Axis) -> dict[str, Tensor]:
    """The tensors of all pipeline stages by name, on every rank: collective."""
    if axis.size == 1:
        return mine
    kinds: list[Any] = [None] * axis.size
    dist.all_gather_object(kinds, {n: (t.shape, t.dtype) for n, t in mine.items()}, axis.group)
    device = next(iter(mine.values())).device
    whole: dict[str, Tensor] = {}
    for position, names in enumerate(kinds):
        for name, (shape, dtype) in names.items():
            here = torch.empty(shape, dtype=dtype, device=device)
            if position == axis.rank:
                here = mine[name]
            whole.setdefault(name, broadcast(here, axis, position))
    return whole | mine  # a tied weight: each rank's own copy
