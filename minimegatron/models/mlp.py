"""The MLP, split by columns and then by rows.

Section 3 and figure 3a of arXiv:1909.08053: cut the first matrix by columns and GELU can be taken
part by part, GELU([XA1, XA2]) = [GELU(XA1), GELU(XA2)]; the second matrix, cut by rows, takes the
parts where they are. f before, g after, nothing in between. Megatron-LM:
`megatron/core/transformer/mlp.py`, class `MLP`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from minimegatron.models.config import GPTConfig
from minimegatron.ranks.mesh import Axis
from minimegatron.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear


class ParallelMLP(nn.Module):
    """(batch, seq, hidden) -> (batch, seq, hidden), with 4 hidden/tp columns in between.

    With `config.sequence_parallel` input and output are (batch, seq/tp, hidden).
    GELU is the tanh approximation, as in GPT-2.
    """

    def __init__(self, config: GPTConfig, axis: Axis) -> None:
        super().__init__()
        hidden, split = config.hidden_size, config.sequence_parallel
        self.up = ColumnParallelLinear(
            hidden, 4 * hidden, axis, sequence_parallel=split, keep_gathered=config.keep_gathered
        )
        self.down = RowParallelLinear(4 * hidden, hidden, axis, sequence_parallel=split)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))
