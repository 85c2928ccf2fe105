"""How long a message takes, on one link and on a cluster of nodes.

A message of S bytes takes a + S/B seconds: a latency, and its bytes over the bandwidth (Hockney's
model). A ring collective is a chain of such messages, so its time is their number times a plus the
ring's bytes over B, the bytes that the ledger calls wire bytes. On nodes with a fast inside and a
slow between, a ring runs at the pace of its slowest link; an all-reduce in three steps (inside,
across, inside) sends 1/ranks_per_node of the bytes across from each rank, through all adapters at
once. Megatron-LM leaves both to NCCL.
"""

from __future__ import annotations

from dataclasses import dataclass

from minimegatron.ranks.ledger import ring_bytes


@dataclass(frozen=True)
class Link:
    """`latency` in seconds a message, `bandwidth` in bytes a second, each way."""

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency < 0 or self.bandwidth <= 0:
            raise ValueError(f"{self}: a latency is at least 0, a bandwidth above 0")


def collective_seconds(op: str, size: float, n: int, link: Link) -> float:
    """Seconds of a ring collective on a logical tensor of `size` bytes, on n ranks; 0 on one.

    `op` by its name in the ledger; "send" is one message. Raises ValueError for any other.
    """
    messages = {"all_reduce": 2 * (n - 1), "send": 1}
    messages |= dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all", "broadcast"), n - 1)
    if op not in messages:
        raise ValueError(f"{op!r} is not one of {', '.join(messages)}")
    if n == 1:
        return 0.0
    return messages[op] * link.latency + ring_bytes(op, size, n) / link.bandwidth


@dataclass(frozen=True)
class Topology:
    """Equal nodes: `inside` joins the ranks of one; `between` is one network adapter of a node.

    A rank sends through one adapter at a time; a node has `adapters` of them for all its ranks.
    """

    nodes: int
    ranks_per_node: int
    inside: Link
    between: Link
    adapters: int = 1

    def ring_seconds(self, op: str, size: float) -> float:
        """One ring through all ranks, node after node: every step waits for its slowest link."""
        used = [self.inside] * (self.ranks_per_node > 1) + [self.between] * (self.nodes > 1)
        used = used or [self.inside]  # one rank, which sends nothing
        pace = Link(max(x.latency for x in used), min(x.bandwidth for x in used))
        return collective_seconds(op, size, self.nodes * self.ranks_per_node, pace)

    def hierarchical_seconds(self, size: float) -> float:
        """An all-reduce of `size` bytes: reduce-scatter inside, all-reduce across, all-gather.

        Each rank of a node reduces its own share with its like of the other nodes, all at once.
        """
        ranks = self.ranks_per_node
        part = min(1.0, self.adapters / ranks)  # of an adapter, for each rank
        across = Link(self.between.latency, self.between.bandwidth * part)
        return (
            collective_seconds("reduce_scatter", size, ranks, self.inside)
            + collective_seconds("all_reduce", size / ranks, self.nodes, across)
            + collective_seconds("all_gather", size, ranks, self.inside)
        )
