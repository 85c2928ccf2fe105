"""What one rank's optimizer updates: the *pieces* of a model.

Without ZeRO a piece is a parameter of this rank. With it the ranks of dp share the parameters out,
cut by their place in a flat buffer and not by their shape: a piece is then some of a parameter's
numbers, or all of them, and many a parameter has no piece here at all. Whatever comes after
`finish_gradients` (unscaling, the norm, clipping, the step) goes over pieces, and so needs to know
nothing of ZeRO. Megatron-LM: the parameter ranges of `DistributedOptimizer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter


@dataclass(frozen=True, eq=False)
class Piece:
    """This rank's part of the `parameter` with the dense name `name`.

    `values` shares the model's memory: written to, it changes the model. Without ZeRO it has the
    parameter's shape, with ZeRO one dimension. `shard` is ZeRO's gradient of these values.
    """

    name: str
    parameter: Parameter
    values: Tensor
    shard: Tensor | None = None

    @property
    def gradient(self) -> Tensor | None:
        """The gradient in the shape of `values`, complete after `finish_gradients`."""
        return self.parameter.grad if self.shard is None else self.shard


def pieces(model: nn.Module) -> list[Piece]:
    """The pieces of this rank, in an order that all ranks of tp share; frozen ones have none."""
    zero = getattr(model, "zero", None)
    if zero is not None:
        found: list[Piece] = zero.pieces()
        return found
    named = model.named_parameters()  # tied parameters come once
    return [Piece(name, p, p.detach()) for name, p in named if p.requires_grad]
