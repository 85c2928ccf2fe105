"""What a training step of a GPT sends, counted before it runs.

Tensor parallelism sends activations, b s h elements a time: two all-reduces a layer forward and two
backward (arXiv:1909.08053, section 3), so 8 bsh (t-1)/t elements a layer on the wire of a ring
(arXiv:2104.04473, section 3.2), plus embedding, head and loss. Data parallelism sends gradients,
once a step whatever the batch. A pipeline sends bsh elements from stage to stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minimegatron.analysis.flops import whole_parameters
from minimegatron.models.config import GPTConfig
from minimegatron.ranks.ledger import ring_bytes

# What a layer's split regions send where activations enter and where they leave them: f and g, or
# with sequence parallelism the all-gather and the reduce-scatter that stand in their places.
ENTER = {
    False: [("all_reduce", "backward")],
    True: [("all_gather", "forward"), ("reduce_scatter", "backward")],
}
LEAVE = {
    False: [("all_reduce", "forward")],
    True: [("reduce_scatter", "forward"), ("all_gather", "backward")],
}


@dataclass(frozen=True)
class Traffic:
    """`count` collectives of one kind over `ranks`, on logical tensors of `bytes` together."""

    what: str
    op: str
    phase: str
    count: int
    bytes: int
    ranks: int

    @property
    def wire_bytes(self) -> float:
        """Bytes that each rank of a ring sends."""
        return ring_bytes(self.op, self.bytes, self.ranks)


def tensor_parallel_traffic(
    config: GPTConfig, batch: int, tp: int, microbatches: int = 1, element: int = 4
) -> list[Traffic]:
    """What a rank sends over tp in a step on `batch` sequences; `element` bytes an activation.

    Each micro-batch sends its part of the batch's bytes. The loss works in float32 at least. With
    sequence parallelism `finish_gradients` also sums, once a step, what each rank holds in part.
    """
    if tp == 1:
        return []
    tokens, split = batch * config.seq_length, config.sequence_parallel
    enter, leave = ENTER[split], LEAVE[split]
    again = [("all_gather", "backward")] if split and not config.keep_gathered else []
    full = [(op, "recompute") for op, phase in enter + leave if phase == "forward"]
    layers = leave + enter + again + (full if config.recompute == "full" else [])
    regions = {"embedding": (1, leave), "layers": (2 * config.num_layers, layers)}
    sent = [Traffic("loss", "all_reduce", "forward", 3, 3 * tokens * max(element, 4), tp)]
    for what, (n, borders) in (regions | {"head": (1, enter + again)}).items():
        size = n * tokens * config.hidden_size * element
        sent += [Traffic(what, op, phase, n, size, tp) for op, phase in borders]
    sent = [replace(row, count=row.count * microbatches) for row in sent]
    if split:
        size = whole_parameters(config) * element
        sent.append(Traffic("gradients", "all_reduce", "backward", 1, size, tp))
    return sent


def data_parallel_wire_bytes(
    parameters: float, dp: int, zero: int = 0, gradient: int = 4, weight: int = 4
) -> float:
    """Bytes a rank of a ring sends over dp in a step, for its `parameters` before ZeRO splits them.

    An all-reduce of the gradients; with ZeRO 1 and 2 the same in two halves, a reduce-scatter of
    the gradients and an all-gather of the updated weights; with ZeRO 3 the weights are gathered
    twice, before forward and before backward. `gradient` and `weight` are bytes of one element.
    """
    gathered = weight * (2 if zero == 3 else 1) if zero else gradient
    return ring_bytes("all_gather", parameters * (gradient + gathered), dp)


def pipeline_message_bytes(
    config: GPTConfig, batch: int, tp: int = 1, element: int = 2, scatter_gather: bool = False
) -> float:
    """Bytes each tp rank sends to the next stage for a micro-batch of `batch`, each way.

    With sequence parallelism, or where a stage scatters its output over tp before it sends and the
    next one gathers it (arXiv:2104.04473, section 4.1), it is 1/tp of bsh.
    """
    parts = tp if scatter_gather or config.sequence_parallel else 1
    return batch * config.seq_length * config.hidden_size * element / parts
