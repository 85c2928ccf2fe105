"""Self-attention, split by heads.

Section 3 and figure 3b of arXiv:1909.08053: heads do not look at each other, so each rank computes
some of them alone. Query, key and value come from one column-split product (cut block by block, so
that a rank gets all three of its heads), the output projection is row-split: it takes the heads
where they are, and g adds up. No concatenation. Megatron-LM:
`megatron/core/transformer/attention.py`, class `SelfAttention`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minimegatron.models.config import GPTConfig
from minimegatron.models.fusion import causal_softmax
from minimegatron.ranks.mesh import Axis
from minimegatron.tensor_parallel.dropout import DropoutStreams, dropout
from minimegatron.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from minimegatron.tensor_parallel.recompute import recompute
from minimegatron.tensor_parallel.shards import divide


class ParallelAttention(nn.Module):
    """Causal self-attention: (batch, seq, hidden) -> (batch, seq, hidden), heads/tp on each rank.

    With `config.sequence_parallel` input and output are (batch, seq/tp, hidden).
    `streams` draws the dropout of the attention weights, `name` is the site in its record. Raises
    ValueError where the heads do not divide by the axis' size.
    """

    def __init__(
        self, config: GPTConfig, axis: Axis, streams: DropoutStreams, name: str = "attention"
    ) -> None:
        super().__init__()
        self.heads = divide(config.num_heads, axis, "num_heads")
        self.head_size = config.hidden_size // config.num_heads
        self.selective = config.recompute == "selective"
        self.explicit, self.p = config.attention == "explicit", config.dropout
        self.streams, self.name = streams, name
        hidden, split = config.hidden_size, config.sequence_parallel
        self.qkv = ColumnParallelLinear(
            hidden, 3 * hidden, axis, sequence_parallel=split, keep_gathered=config.keep_gathered
        )
        self.out = RowParallelLinear(hidden, hidden, axis, sequence_parallel=split)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        batch, seq, _ = qkv.shape  # the whole sequence, also where x is a part of it
        qkv = qkv.view(batch, seq, 3, self.heads, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads/tp, seq, head size)
        attend = self._explicit if self.explicit else self._fused
        if self.selective:  # the core: little arithmetic, and most of the memory
            heads = recompute(attend, self.streams, query, key, value)
        else:
            heads = attend(query, key, value)
        return self.out(heads.transpose(1, 2).reshape(batch, seq, self.heads * self.head_size))

    def _explicit(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = causal_softmax(query @ key.transpose(-2, -1), self.head_size**-0.5)
        # Each rank holds other heads: their masks must differ.
        weights = dropout(
            weights, self.p, self.streams.different, self.training,
            site=f"{self.name}.weights", record=self.streams.record,
        )  # fmt: skip
        return weights @ value

    def _fused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if self.streams.record is not None:
            raise ValueError(
                "attention='sdpa' keeps its dropout mask to itself: record masks with "
                "attention='explicit'"
            )
        # The kernel draws from torch's default generator: lend it a seed of our own stream.
        different, device = self.streams.different, query.device
        seed = torch.randint(2**31, (), generator=different, device=different.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=self.p, is_causal=True
            )
