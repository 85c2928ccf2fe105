"""The embedding and the loss, split by vocabulary: each rank knows some of the tokens.

Section 3 of arXiv:1909.08053: the embedding is cut by rows of the vocabulary, a token that another
rank holds counts as zero, and g adds the ranks up. The loss is fused with the split output product:
instead of gathering batch x seq x vocab logits, the ranks exchange three numbers a token.
Megatron-LM: `VocabParallelEmbedding` in `megatron/core/tensor_parallel/layers.py`, and
`vocab_parallel_cross_entropy` in `megatron/core/tensor_parallel/cross_entropy.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.mesh import Axis
from minimegatron.tensor_parallel.operators import g, sequence_reduce_scatter
from minimegatron.tensor_parallel.shards import padded, shard_of


def _check_tokens(tokens: Tensor, size: int, what: str, ignore: int | None = None) -> None:
    """IndexError that names the first token outside 0..size-1, other than `ignore`.

    A GPU is not waited for: there the check runs as an assertion in the stream.
    """
    wrong = (tokens < 0) | (tokens >= size)
    if ignore is not None:
        wrong &= tokens != ignore
    if tokens.is_cuda:
        torch._assert_async(~wrong.any(), f"{what} outside the vocabulary of {size}")
    elif wrong.any():
        raise IndexError(f"{what} {tokens[wrong][0]} is outside the vocabulary of {size}")


class VocabParallelEmbedding(nn.Module):
    """Rows of an embedding, cut by vocabulary: tokens (batch, seq) -> (batch, seq, dim).

    `.weight` (padded vocabulary/tp, dim) is this rank's rows of the torch.nn.Embedding that the
    same random state would give, with rows of zeros behind the last token until the vocabulary
    divides. `sequence_parallel=True` returns (batch, seq/tp, dim). Raises IndexError for a token
    outside the vocabulary.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, axis: Axis, sequence_parallel: bool = False
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.axis = num_embeddings, embedding_dim, axis
        self.sequence_parallel = sequence_parallel
        self.first = axis.rank * (padded(num_embeddings, axis) // axis.size)
        self._keep(nn.Embedding(num_embeddings, embedding_dim))

    def _keep(self, dense: nn.Embedding) -> None:
        rows = shard_of(dense.weight.detach(), self.axis, 0, pad=True)
        self.weight = nn.Parameter(rows, requires_grad=dense.weight.requires_grad)

    @classmethod
    def from_dense(cls, module: nn.Embedding, axis: Axis, **options: Any) -> VocabParallelEmbedding:
        """This rank's part of a torch.nn.Embedding's values; the constructor's `options`."""
        if module.padding_idx is not None or module.max_norm is not None:
            raise ValueError("an embedding with padding_idx or max_norm cannot be split here")
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            layer = cls(module.num_embeddings, module.embedding_dim, axis, **options)
        layer._keep(module)
        return layer

    def forward(self, tokens: Tensor) -> Tensor:
        _check_tokens(tokens, self.num_embeddings, "token")
        local = tokens - self.first
        elsewhere = (local < 0) | (local >= len(self.weight))
        vectors = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        if self.axis.size > 1:
            vectors = vectors.masked_fill(elsewhere.unsqueeze(-1), 0.0)
        if self.sequence_parallel:
            return sequence_reduce_scatter(vectors, self.axis)
        return g(vectors, self.axis)


class _CrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, axis: Axis, real: int, ignore_index: int
    ) -> Tensor:
        columns = logits.shape[-1]
        known = logits[..., :real]
        if real:
            largest = known.amax(-1)
        else:  # a rank that holds nothing but padding
            largest = logits.new_full(logits.shape[:-1], -torch.inf)
        if logits.dtype.itemsize < 4:
            largest = largest.float()
        # exp overflows on large logits: take the maximum of the whole row off, not of this part.
        largest = all_reduce(largest, axis, "max")
        parts = logits - largest.unsqueeze(-1)  # half precision becomes float32 here
        parts[..., real:] = -torch.inf
        local = targets - axis.rank * columns
        elsewhere = (local < 0) | (local >= columns)
        local = local.masked_fill(elsewhere, 0).unsqueeze(-1)
        target = parts.gather(-1, local).squeeze(-1).masked_fill(elsewhere, 0.0)
        target = all_reduce(target, axis)
        parts.exp_()
        total = all_reduce(parts.sum(-1), axis)
        ignored = targets == ignore_index
        loss = (total.log() - target).masked_fill(ignored, 0.0)
        # The gradient is softmax - one_hot(target) = (parts - total one_hot) / total: left ready in
        # the one buffer of the logits' size, so that backward is a single product.
        here = total.masked_fill(elsewhere, 0.0).unsqueeze(-1)
        parts.scatter_add_(-1, local, -here)
        ctx.save_for_backward(parts, total.reciprocal().masked_fill(ignored, 0.0))
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, scale = ctx.saved_tensors
        grad_logits = torch.empty_like(parts, dtype=ctx.dtype)
        torch.mul(parts, (grad * scale).unsqueeze(-1), out=grad_logits)
        return grad_logits, None, None, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    axis: Axis,
    vocab_size: int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy per token from split logits, which are never gathered.

    `logits` (..., padded vocabulary/tp), `targets` (...) of token ids -> loss (...) in nats, 0
    where the target is `ignore_index`. Three all-reduces forward (maximum, target's logit, sum of
    exponentials), none backward. Half-precision logits are computed, and the loss returned, in
    float32. With `vocab_size`, columns beyond it are padding: no part in the softmax, no gradient.
    Raises ValueError for a last dimension other than ceil(vocab_size/tp) or targets of another
    shape, IndexError for a target outside the vocabulary.
    """
    columns = logits.shape[-1]
    size = columns * axis.size if vocab_size is None else vocab_size
    wanted = padded(size, axis) // axis.size
    if columns != wanted:
        raise ValueError(
            f"logits have {columns} columns, but a vocabulary of {vocab_size} on "
            f"{axis.name}={axis.size} has {wanted} on each rank"
        )
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit logits of {tuple(logits.shape)}"
        )
    _check_tokens(targets, size, "target", ignore_index)
    real = min(max(size - axis.rank * columns, 0), columns)
    loss: Tensor = _CrossEntropy.apply(logits, targets.long(), axis, real, ignore_index)
    return loss
