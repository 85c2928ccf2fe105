"""f, g and their relatives: the only places where a tensor-parallel layer communicates.

Section 3 and figure 3 of arXiv:1909.08053 put two conjugate operators around a pair of split matrix
products. f copies its input to every rank: identity forward, so backward the ranks' gradients must
be added up. g adds the ranks' partial results: all-reduce forward, so backward every rank's partial
result gets the whole gradient. Each pair below is conjugate in the same sense: the backward of one
is the forward of the other. Megatron-LM, `megatron/core/tensor_parallel/mappings.py`:

    f                          copy_to_tensor_model_parallel_region
    g                          reduce_from_tensor_model_parallel_region
    scatter                    scatter_to_tensor_model_parallel_region
    gather                     gather_from_tensor_model_parallel_region
    sequence_all_gather        gather_from_sequence_parallel_region
    sequence_reduce_scatter    reduce_scatter_to_sequence_parallel_region

Every operator returns a tensor with memory of its own, and leaves its input and the gradient it is
given as they were: either may be a view, an expanded number, or needed by another branch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from minimegatron.ranks.collectives import all_gather, all_reduce, reduce_scatter
from minimegatron.ranks.mesh import Axis
from minimegatron.tensor_parallel.shards import shard_of


def _fresh(result: Tensor, x: Tensor) -> Tensor:
    """`result`, or a copy of it where a collective over one rank handed back `x` itself."""
    return x.clone() if result is x else result


class _F(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.axis), None


class _G(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return _fresh(all_reduce(x, axis), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return shard_of(x, axis, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(grad, ctx.axis, ctx.dim), None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _fresh(all_gather(x, axis, dim), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return shard_of(grad, ctx.axis, ctx.dim), None, None


class _SequenceAllGather(_Gather):  # forward as gather; backward adds the ranks' gradients up
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(grad, ctx.axis, ctx.dim), None, None


class _SequenceReduceScatter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _fresh(reduce_scatter(x, axis, dim), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(grad, ctx.axis, ctx.dim), None, None


def _from_front(x: Tensor, dim: int) -> int:
    """`dim` counted from the front, or torch's own IndexError."""
    x.size(dim)
    return dim % x.dim()


def f(x: Tensor, axis: Axis) -> Tensor:
    """Into a column-split product: identity forward, all-reduce of the gradient backward.

    `x` has any shape, the same values on every rank; so has the result. The paper's f.
    """
    result: Tensor = _F.apply(x, axis)
    return result


def g(x: Tensor, axis: Axis) -> Tensor:
    """Out of a row-split product: all-reduce (sum) forward, identity backward.

    `x` has any shape, a partial sum on each rank; the result is the sum, on every rank. The
    paper's g, and the f-bar of arXiv:2205.05198.
    """
    result: Tensor = _G.apply(x, axis)
    return result


def scatter(x: Tensor, axis: Axis, dim: int = -1) -> Tensor:
    """This rank's part of `x` along `dim` (nothing is sent); all-gather of the gradient backward.

    (..., n, ...) -> (..., n/tp, ...). Raises ValueError where n does not divide by the axis' size.
    """
    result: Tensor = _Scatter.apply(x, axis, _from_front(x, dim))
    return result


def gather(x: Tensor, axis: Axis, dim: int = -1) -> Tensor:
    """Every rank's part joined along `dim`; this rank's part of the gradient backward.

    (..., n/tp, ...) -> (..., n, ...). For results that every rank then uses in the same way: the
    gradients of all ranks are taken to be equal, and not added up (`sequence_all_gather` adds).
    """
    result: Tensor = _Gather.apply(x, axis, _from_front(x, dim))
    return result


def sequence_all_gather(x: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """All-gather along the sequence forward, reduce-scatter of the gradient backward.

    (batch, seq/tp, hidden) -> (batch, seq, hidden): the g of arXiv:2205.05198, which takes f's
    place where the sequence is split outside the matrix products.
    """
    result: Tensor = _SequenceAllGather.apply(x, axis, _from_front(x, dim))
    return result


def sequence_reduce_scatter(x: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Reduce-scatter along the sequence forward, all-gather of the gradient backward.

    (batch, seq, hidden), a partial sum on each rank -> (batch, seq/tp, hidden): the g-bar of
    arXiv:2205.05198. Raises ValueError where seq does not divide by the axis' size.
    """
    result: Tensor = _SequenceReduceScatter.apply(x, axis, _from_front(x, dim))
    return result
