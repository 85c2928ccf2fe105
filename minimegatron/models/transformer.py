"""A transformer layer: attention and MLP, each with a residual, a LayerNorm and dropout.

Figure 4 of arXiv:1909.08053: two all-reduces forward (the g of attention and of the MLP) and two
backward (their f). LayerNorm, dropout and residual are computed in full on every rank: cheaper than
sending anything. With sequence parallelism (section 4.2.2 of arXiv:2205.05198) each rank computes
them for 1/tp of the sequence, and all-gathers and reduce-scatters take the all-reduces' place.
Section 5.3 and figure 7 move the LayerNorm: "post" is the first transformer's
LN(x + F(x)), "pre" is GPT-2's x + F(LN(x)), which keeps the residual path free. Megatron-LM:
`megatron/core/transformer/transformer_layer.py`, class `TransformerLayer`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from minimegatron.models.attention import ParallelAttention
from minimegatron.models.config import GPTConfig
from minimegatron.models.mlp import ParallelMLP
from minimegatron.ranks.mesh import Axis
from minimegatron.tensor_parallel.dropout import DropoutStreams, dropout


class TransformerLayer(nn.Module):
    """(batch, seq, hidden) -> (batch, seq, hidden), whole and equal on every rank of the axis.

    With `config.sequence_parallel` (batch, seq/tp, hidden), each rank's own part of the sequence.
    `streams` draws the dropout, `name` is the prefix of its sites in the record.
    """

    def __init__(
        self, config: GPTConfig, axis: Axis, streams: DropoutStreams, name: str = "layer"
    ) -> None:
        super().__init__()
        self.pre, self.p = config.layer_norm == "pre", config.dropout
        self.streams, self.name = streams, name
        self.sequence_parallel = config.sequence_parallel
        self.ln1 = nn.LayerNorm(config.hidden_size)
        self.attention = ParallelAttention(config, axis, streams, f"{name}.attention")
        self.ln2 = nn.LayerNorm(config.hidden_size)
        self.mlp = ParallelMLP(config, axis)

    def forward(self, x: Tensor) -> Tensor:
        x = self._residual(x, self.ln1, self.attention, "attention")
        return self._residual(x, self.ln2, self.mlp, "mlp")

    def _residual(
        self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor], site: str
    ) -> Tensor:
        y = sublayer(norm(x) if self.pre else x)
        # Behind g every rank holds the same values: their masks must be the same too. With
        # sequence parallelism each rank holds other tokens, and draws masks of its own.
        stream = self.streams.different if self.sequence_parallel else self.streams.same
        y = dropout(
            y, self.p, stream, self.training,
            site=f"{self.name}.{site}.residual", record=self.streams.record,
        )  # fmt: skip
        return x + y if self.pre else norm(x + y)
