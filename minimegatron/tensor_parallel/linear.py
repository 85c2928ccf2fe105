"""The two ways to cut Y = XA: by columns of A, or by rows.

Section 3 of arXiv:1909.08053. By columns, A = [A1, A2]: every rank needs all of X and makes some
columns of Y, so a non-linearity can follow at once. By rows, A = [A1; A2]: every rank needs some
columns of X and makes a partial sum of all of Y. A column layer feeding a row layer needs f before
the first and g after the second, and nothing in between. torch stores A transposed: a column split
is dim 0 of `.weight`, a row split is dim 1. Megatron-LM:
`megatron/core/tensor_parallel/layers.py`, classes of the same names, and
`linear_with_grad_accumulation_and_async_allreduce` for the overlap in the column layer's backward;
the row layer's `chunks` hide its all-reduce part by part, as `--tp-comm-overlap` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minimegatron.ranks.collectives import Handle, all_gather, all_reduce, reduce_scatter
from minimegatron.ranks.ledger import span
from minimegatron.ranks.mesh import Axis
from minimegatron.ranks.using import replaced
from minimegatron.tensor_parallel.deferred import Later, linear
from minimegatron.tensor_parallel.operators import (
    f,
    g,
    gather,
    scatter,
    sequence_all_gather,
    sequence_reduce_scatter,
)
from minimegatron.tensor_parallel.shards import divide, shard_of


class _OverlappedColumn(Function):
    """F.linear(f(x), weight, bias), its all-reduce under way while the weight gradient is made.

    With `sequence_parallel`, sequence_all_gather and reduce-scatter take f's place. The gathered
    input is dropped after the forward and gathered again, under the input gradient, as in Megatron;
    with `keep_gathered` it stays: tp times the memory, a fifth less to send.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, axis: Axis,
        sequence_parallel: bool, keep_gathered: bool,
    ) -> Tensor:  # fmt: skip
        whole = all_gather(x, axis, 1) if sequence_parallel else x
        ctx.save_for_backward(whole if keep_gathered else x, weight)
        ctx.axis, ctx.sequence_parallel = axis, sequence_parallel
        ctx.again = sequence_parallel and not keep_gathered
        return F.linear(whole, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        axis, sequence_parallel = ctx.axis, ctx.sequence_parallel
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        again = all_gather(x, axis, 1, async_op=True) if ctx.again and of_weight else None
        reducing = None
        if of_x:
            with span("input gradient"):
                grad_x = grad @ weight
            if sequence_parallel:
                reducing = reduce_scatter(grad_x, axis, 1, async_op=True)
            else:
                reducing = all_reduce(grad_x, axis, inplace=True, async_op=True)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = grad_bias = None
        if of_weight:
            whole = again.wait() if again is not None else x
            with span("weight gradient"):
                grad_weight = rows.t() @ whole.reshape(-1, whole.shape[-1])
        if of_bias:
            grad_bias = rows.sum(0)
        return reducing and reducing.wait(), grad_weight, grad_bias, None, None, None


def column_parallel(
    x: Tensor, weight: Tensor, bias: Tensor | None, axis: Axis, sequence_parallel: bool = False,
    keep_gathered: bool = False, later: Later | None = None,
) -> Tensor:  # fmt: skip
    """X times this rank's columns of A: (batch, seq, in) -> (batch, seq, out/tp).

    `weight` (out/tp, in), `bias` (out/tp) or None. With `sequence_parallel`, `x` is
    (batch, seq/tp, in), gathered again in backward unless `keep_gathered`. `later` gets the work of
    the weight's gradient (deferred.py).
    """
    pieces = ["f", "all_reduce"]
    if sequence_parallel:
        pieces = ["sequence_all_gather", "all_gather", "reduce_scatter"]
    # A learner's piece runs where the paper puts it; and no product is left to hide a message under
    # where weight gradients wait.
    if later is not None or any(map(replaced, pieces)):
        whole = sequence_all_gather(x, axis) if sequence_parallel else f(x, axis)
        return linear(whole, weight, bias, later)
    if axis.size == 1:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):  # which sees no products inside a backward
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _OverlappedColumn.apply(
        x, weight, bias, axis, sequence_parallel, keep_gathered
    )
    return result


class _Arrived(Function):
    """g's sum of x's, started before: the result that `handle` brings; identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, handle: Handle) -> Tensor:
        return handle.wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _in_chunks(x: Tensor, weight: Tensor, axis: Axis, chunks: int) -> Tensor:
    """g(F.linear(x, weight)), a part of the sequence travelling while the next is multiplied."""
    if x.shape[-2] % chunks:
        raise ValueError(f"a sequence of {x.shape[-2]} does not divide by chunks={chunks}")
    started = []
    for part in x.chunk(chunks, -2):
        with span("product"):
            y = F.linear(part, weight)
        started.append((y, all_reduce(y, axis, async_op=True)))
    return torch.cat([_Arrived.apply(y, handle) for y, handle in started], -2)


def _shard(dense: Tensor, axis: Axis, dim: int, blocks: int = 1) -> nn.Parameter:
    values = shard_of(dense.detach(), axis, dim, blocks)
    return nn.Parameter(values, requires_grad=dense.requires_grad)


def _expect(x: Tensor, size: int, cure: str = "") -> None:
    """A ValueError that names both sizes where X's last dimension is not what the weight takes."""
    if x.shape[-1] != size:
        raise ValueError(f"the input's last dimension is {x.shape[-1]}, and should be {size}{cure}")


class ColumnParallelLinear(nn.Module):
    """Y = f(X) A + b with A cut by columns: (batch, seq, in) -> (batch, seq, out/tp).

    `.weight` (out/tp, in) and `.bias` (out/tp) are this rank's rows of the torch.nn.Linear that the
    same random state would give. `gather_output=True` joins the parts to (batch, seq, out);
    `sequence_parallel=True` takes X as (batch, seq/tp, in), and gathers it again in backward unless
    `keep_gathered`. Raises ValueError where `out_features` does not divide by the axis' size, and
    for an X of another width.
    """

    def __init__(
        self, in_features: int, out_features: int, axis: Axis, bias: bool = True,
        gather_output: bool = False, sequence_parallel: bool = False, keep_gathered: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        divide(out_features, axis, "out_features")
        self.in_features, self.out_features, self.axis = in_features, out_features, axis
        self.gather_output, self.sequence_parallel = gather_output, sequence_parallel
        self.keep_gathered = keep_gathered
        self.later: Later | None = None  # a pipeline that splits the backward sets it
        self._keep(nn.Linear(in_features, out_features, bias), blocks=1)

    def _keep(self, dense: nn.Linear, blocks: int) -> None:
        self.weight = _shard(dense.weight, self.axis, 0, blocks)
        self.bias: nn.Parameter | None = None
        if dense.bias is not None:
            self.bias = _shard(dense.bias, self.axis, 0, blocks)

    @classmethod
    def from_dense(
        cls, module: nn.Linear, axis: Axis, *, blocks: int = 1, **options: Any
    ) -> ColumnParallelLinear:
        """This rank's part of a torch.nn.Linear's values; the constructor's `options`.

        `blocks=3` splits a fused query-key-value product block by block.
        """
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            layer = cls(
                module.in_features, module.out_features, axis, module.bias is not None, **options
            )
        layer._keep(module, blocks)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        _expect(x, self.in_features)
        how = (self.sequence_parallel, self.keep_gathered, self.later)
        y = column_parallel(x, self.weight, self.bias, self.axis, *how)
        return gather(y, self.axis) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """Y = g(X A) + b with A cut by rows: (batch, seq, in/tp) -> (batch, seq, out).

    `.weight` (out, in/tp) is this rank's columns of the torch.nn.Linear that the same random state
    would give; `.bias` (out) is whole on every rank and added once, after the sum.
    `input_is_parallel=False` takes X whole and splits it; `sequence_parallel=True` leaves Y as
    (batch, seq/tp, out), and the bias' gradient a partial sum. `chunks=k` sums k parts of the
    sequence one by one, each under the next one's product. Raises ValueError where `in_features`
    does not divide by the axis' size or the sequence by `chunks`, and for an X of another width.
    """

    def __init__(
        self, in_features: int, out_features: int, axis: Axis, bias: bool = True,
        input_is_parallel: bool = True, sequence_parallel: bool = False, chunks: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        divide(in_features, axis, "in_features")
        if chunks < 1 or (chunks > 1 and sequence_parallel):
            raise ValueError(
                f"chunks={chunks}: 1 or more, and 1 with sequence_parallel, where each rank keeps "
                "one part of the whole sequence"
            )
        self.in_features, self.out_features, self.axis = in_features, out_features, axis
        self.input_is_parallel, self.sequence_parallel = input_is_parallel, sequence_parallel
        self.chunks = chunks
        self.later: Later | None = None  # as the column layer's
        self._keep(nn.Linear(in_features, out_features, bias))

    def _keep(self, dense: nn.Linear) -> None:
        self.weight = _shard(dense.weight, self.axis, 1)
        self.bias: nn.Parameter | None = None
        if dense.bias is not None:
            self.bias = nn.Parameter(dense.bias.detach().clone(), dense.bias.requires_grad)

    @classmethod
    def from_dense(cls, module: nn.Linear, axis: Axis, **options: Any) -> RowParallelLinear:
        """This rank's part of a torch.nn.Linear's values; the constructor's `options`."""
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            layer = cls(
                module.in_features, module.out_features, axis, module.bias is not None, **options
            )
        layer._keep(module)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if self.input_is_parallel:
            _expect(x, self.weight.shape[1], ", this rank's part (input_is_parallel=False cuts X)")
            part = x
        else:
            _expect(x, self.in_features)
            part = scatter(x, self.axis)
        if self.chunks > 1 and not (replaced("g") or replaced("all_reduce")):
            y = _in_chunks(part, self.weight, self.axis, self.chunks)
        else:
            partial_sum = linear(part, self.weight, None, self.later)
            join = sequence_reduce_scatter if self.sequence_parallel else g
            y = join(partial_sum, self.axis)
        return y if self.bias is None else y + self.bias
