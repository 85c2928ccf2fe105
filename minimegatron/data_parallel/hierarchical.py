"""An all-reduce that knows which ranks share a machine.

Links inside a machine (NVLink) are ten times as fast as those between machines. A flat ring pays
the slow link for 2 (n-1)/n of the tensor. In three steps each rank takes one piece across only: a
reduce-scatter inside each node of g ranks, an all-reduce of 1/g of the tensor across the m nodes,
an all-gather inside. Per rank 2 (g-1)/g of the tensor stays inside and 2 (m-1)/m / g crosses, in
2 (m-1) messages, not 2 (n-1) (Jia et al., arXiv:1807.11205). NCCL's trees know the machines, too;
Megatron-LM's `--num-distributed-optimizer-instances` splits dp alike, a reduce-scatter inside each
instance and an all-reduce across.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from minimegatron.data_parallel.gradients import GradientBuckets, Model
from minimegatron.ranks.collectives import Handle, all_gather, all_reduce, reduce_scatter
from minimegatron.ranks.mesh import Axis


@functools.cache  # a process group is dear
def split_axis(axis: Axis, ranks_per_node: int) -> tuple[Axis, Axis]:
    """`axis` as (inside, across): neighbours of one node, and this position in every node.

    The ledger calls them "dp.inside" and "dp.across". Raises ValueError where the nodes would not
    be equally large.
    """
    if ranks_per_node < 1 or axis.size % ranks_per_node:
        raise ValueError(
            f"ranks_per_node={ranks_per_node} does not divide {axis.name}={axis.size}: every node "
            "has the same number of ranks"
        )

    def part(name: str, ranks: list[int]) -> Axis:
        group = functools.partial(dist.new_group, ranks, use_local_synchronization=True)
        return Axis(f"{axis.name}.{name}", ranks, ranks.index(axis.ranks[axis.rank]), group)

    at, n = axis.rank, ranks_per_node
    return part("inside", axis.ranks[at - at % n :][:n]), part("across", axis.ranks[at % n :: n])


def hierarchical_all_reduce(
    x: Tensor, inside: Axis, across: Axis, *, async_op: bool = False
) -> Tensor | Handle:
    """The sum of every rank's `x`, any shape, over both axes: the same bits on every rank.

    `inside` and `across` come from `split_axis`, or are two axes of a mesh. With `async_op=True` it
    returns a Handle: the first step is under way, the other two follow in `handle.wait()`.
    """
    flat = x.detach().flatten()
    mine = reduce_scatter(pad(flat, (0, -len(flat) % inside.size)), inside, async_op=True)

    def finish() -> Tensor:
        whole: Tensor = all_gather(all_reduce(mine.wait(), across), inside)
        return whole[: len(flat)].view(x.shape)

    return Handle(finish) if async_op else finish()


def reduce_by_nodes(model: Model, ranks_per_node: int) -> None:
    """From now on the model's gradient buckets are summed over dp node by node. Collective."""
    inside, across = split_axis(model.mesh.dp, ranks_per_node)

    def reduce(buckets: GradientBuckets, index: int) -> Handle:
        buffer = buckets.buffers[index]
        handle: Any = hierarchical_all_reduce(buffer, inside, across, async_op=True)
        return Handle(lambda: buffer.copy_(handle.wait()))

    model.gradient_reducer = reduce
