"""Which part of a dense tensor a rank holds, and the dense tensor from its parts.

A matrix is cut along one dimension into as many equal parts as the axis has ranks. A fused matrix
(query, key and value in one) is cut block by block, so that every rank holds a part of each: cut as
one block, rank 0 of 2 would get all queries and half the keys. A vocabulary is padded with zeros to
a multiple of the axis' size first. Megatron-LM's names: `divide`, `partition_dim`, and
`make_vocab_size_divisible_by` for the padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimegatron.ranks.collectives import all_gather
from minimegatron.ranks.mesh import Axis


def divide(size: int, axis: Axis, what: str) -> int:
    """`size` / the axis' size, or a ValueError that names both numbers and `what` was cut."""
    if size % axis.size:
        raise ValueError(f"{what} {size} does not divide by {axis.name}={axis.size}")
    return size // axis.size


def padded(size: int, axis: Axis) -> int:
    """The smallest multiple of the axis' size that is at least `size`."""
    return -(-size // axis.size) * axis.size


def shard_of(dense: Tensor, axis: Axis, dim: int = 0, blocks: int = 1, pad: bool = False) -> Tensor:
    """This rank's part of `dense` along `dim`, as a tensor of its own.

    With `blocks` > 1 the dimension holds that many tensors side by side, each cut by itself; with
    `pad` zeros are added until it divides. Raises ValueError where it does not divide.
    """
    size = dense.shape[dim]
    if size % blocks:
        raise ValueError(f"dimension {dim} of size {size} does not divide into {blocks} blocks")
    rows = padded(size, axis) if pad else size
    per_block = divide(rows // blocks, axis, f"dimension {dim} of size")
    if rows > size:
        zeros = dense.new_zeros([*dense.shape[:dim], rows - size, *dense.shape[dim + 1 :]])
        dense = torch.cat([dense, zeros], dim)
    parts = dense.unflatten(dim, (blocks, axis.size, per_block)).select(dim + 1, axis.rank)
    return parts.flatten(dim, dim + 1).clone(memory_format=torch.contiguous_format)


def dense_of(shard: Tensor, axis: Axis, dim: int = 0, blocks: int = 1) -> Tensor:
    """The dense tensor, on every rank, from each rank's `shard`: collective. Keeps padding."""
    whole = all_gather(shard.detach(), axis, dim)
    if blocks == 1 or axis.size == 1:
        return whole
    # (rank, block, rows) as gathered -> (block, rank, rows) as dense.
    parts = whole.unflatten(dim, (axis.size, blocks, -1)).transpose(dim, dim + 1)
    return parts.flatten(dim, dim + 2)
