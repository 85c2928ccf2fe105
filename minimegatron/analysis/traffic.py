"""What a training step of a GPT sends, counted before it runs.

Tensor parallelism sends activations, b s h elements a time: two all-reduces a layer forward and two
backward (arXiv:1909.08053, section 3), so 8 bsh (t-1)/t elements a layer on the wire of a ring
(arXiv:2104.04473, section 3.2), plus embedding, head and loss. Data parallelism sends gradients,
once a step whatever the batch. A pipeline sends bsh elements from stage to stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from minimegatron.analysis.flops import whole_parameters
from minimegatron.models.config import GPTConfig
from minimegatron.ranks.ledger import ring_bytes

# Of hidden states: what sends, the collective, the phase. A layer sends each of its own twice.
PLAIN = (
    ("embedding", "all_reduce", "forward"),
    ("layers", "all_reduce", "forward"),
    ("head", "all_reduce", "backward"),
    ("layers", "all_reduce", "backward"),
)
SEQUENCE_PARALLEL = (
    ("embedding", "reduce_scatter", "forward"),
    ("layers", "all_gather", "forward"),
    ("layers", "reduce_scatter", "forward"),
    ("head", "all_gather", "forward"),
    ("head", "reduce_scatter", "backward"),
    ("layers", "all_gather", "backward"),
    ("layers", "reduce_scatter", "backward"),
    ("embedding", "all_gather", "backward"),
)
GATHERED_AGAIN = (("head", "all_gather", "backward"), ("layers", "all_gather", "backward"))


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
    tokens, m = batch * config.seq_length, microbatches
    rows = [*(SEQUENCE_PARALLEL if config.sequence_parallel else PLAIN)]
    if config.recompute == "full":
        rows += [("layers", op, "recompute") for _, op, phase in rows[1:3] if phase == "forward"]
    if config.sequence_parallel and not config.keep_gathered:
        rows += GATHERED_AGAIN
    sent = [Traffic("loss", "all_reduce", "forward", 3 * m, 3 * tokens * max(element, 4), tp)]
    for what, op, phase in rows:
        count = 2 * config.num_layers if what == "layers" else 1
        size = count * tokens * config.hidden_size * element
        sent.append(Traffic(what, op, phase, count * m, size, tp))
    if config.sequence_parallel:
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
