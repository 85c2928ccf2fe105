"""ZeRO: ranks of dp share out what plain data parallelism makes every one of them keep.

"ZeRO", arXiv:1910.02054, section 5. Every rank of dp holds the same parameters, gradients and AdamW
moments, and none needs all of them all the time. Stage 1: each rank updates its shard alone, so
only its shard has moments; all-reduce becomes reduce-scatter of the gradients and, after the step,
all-gather of the parameters: the same bytes. Stage 2: a rank also forgets gradients outside its
shard as soon as they are reduced. Stage 3: it keeps its shard of the parameters alone, and gathers
a layer just before it is used, in forward and again in backward: 1.5 times the bytes. A shard is
cut from a flat buffer of many parameters and crosses their borders. Megatron-LM:
`DistributedOptimizer` (stage 1), Megatron FSDP (2, 3); torch: ZeroRedundancyOptimizer, fully_shard.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from minimegatron.data_parallel import gradients
from minimegatron.data_parallel.gradients import GradientBuckets, free, make_room, views_of
from minimegatron.data_parallel.pieces import Piece
from minimegatron.ranks.collectives import Handle, all_gather, reduce_scatter
from minimegatron.ranks.ledger import current_phase, phase


class Model(gradients.Model, Protocol):
    """What this file needs of a model (a GPT)."""

    layers: nn.ModuleDict
    chunks: int
    zero: Zero | None


def check_zero(stage: int, pipeline: int) -> None:
    """A ValueError for a stage of ZeRO that there is not, or none for `pipeline` > 1 stages."""
    if stage not in (1, 2, 3):
        raise ValueError(f"zero={stage!r} is not a stage of ZeRO: 1, 2 or 3 (0 is without)")
    if stage > 1 and pipeline > 1:
        work = "reduce its gradients" + (" and gather its parameters twice" if stage == 3 else "")
        raise ValueError(
            f"zero={stage} in a pipeline of {pipeline} stages: it lives on many micro-batches, and "
            f"for each a rank would have to {work}; zero=1 sends once a step and goes with pp"
        )


class Zero:
    """Shards `model` over its dp axis, in place, by ZeRO's stage 1, 2 or 3: `model.zero`.

    Make it after freezing and casting and before the optimizer (`make_optimizer`), which then
    updates this rank's `pieces` and calls `finish_step`. Gradients are complete in the pieces, not
    in `.grad`. With stage 3 a parameter has its memory while its layer computes and inside
    `whole()`. Frozen parameters stay whole. On dp=1 it says a word and does nothing. Raises
    ValueError for another stage, for stages 2 and 3 in a pipeline, and for a model that has ZeRO or
    a gradient reducer already.
    """

    def __init__(
        self, model: Model, stage: int, bucket_bytes: int = gradients.BUCKET_BYTES
    ) -> None:
        check_zero(stage, model.mesh.pp.size * model.chunks)
        if model.zero or model.gradient_reducer:
            raise ValueError("the model has ZeRO already, or a gradient reducer, and ZeRO is one")
        self.stage, self.axis = stage, model.mesh.dp
        self.values: list[Tensor] = []  # a bucket's parameters, flat and whole
        self.shards: list[Tensor] = []  # this rank's part of them
        self.gradients: list[Tensor] = []  # and of their gradients
        if self.axis.size == 1:
            if model.mesh.rank == 0:
                print(f"zero={stage}: nothing is sharded, as dp=1 has no other rank to share with")
            return
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        # What stage 3 gathers together: a layer; all the rest belongs to the model itself.
        units: list[Any] = [*reversed([*model.layers.values()]), model]
        unit_of = {p: unit for unit in reversed(units) for p in unit.parameters()}
        members = [[p for p in self.names if unit_of[p] is unit] for unit in units]
        groups = [group for of in members for group in gradients.in_buckets(of, sys.maxsize)]
        self.buckets = GradientBuckets(
            list(self.names), self.axis, bucket_bytes, stage, groups if stage == 3 else None
        )
        for group, buffer in zip(self.buckets.groups, self.buckets.buffers, strict=True):
            self._share(group, buffer)
        if stage == 3:
            indexes = [{self.buckets.bucket_of[p] for p in of} for of in members]
            for unit, mine in zip(units, indexes, strict=True):
                unit.register_forward_pre_hook(partial(self._gather, mine, indexes[-1]))
                unit.register_forward_hook(partial(self._leave, mine, indexes[-1]))
        self.buckets.reducer = self._reduce
        vars(model)["gradient_buckets"] = self.buckets
        model.zero = self

    def _mine(self, flat: Tensor, alone: bool = False) -> Tensor:
        """This rank's part of a flat tensor; `alone`, the rest gives its memory back."""
        mine = flat.chunk(self.axis.size)[self.axis.rank]
        if alone:
            mine = mine.clone()
            free(flat)
        return mine

    def _share(self, group: list[Parameter], buffer: Tensor) -> None:
        """Moves the parameters into a flat tensor like their gradients' buffer, and cuts both."""
        values = torch.zeros_like(buffer, dtype=group[0].dtype)
        for p, view in views_of(group, values).items():
            p.data = view.copy_(p.detach())
        self.values.append(values)
        self.shards.append(self._mine(values, alone=self.stage == 3))
        self.gradients.append(self._mine(buffer, alone=self.stage > 1))

    def _reduce(self, buckets: GradientBuckets, index: int) -> Handle:
        """The buckets' reducer: this rank's part of the sum of bucket `index`."""
        buffer = buckets.buffers[index]
        if self.stage > 1 and index:
            buckets.handles[-1].wait()  # and free the bucket before
        if self.stage == 3:
            free(self.values[index])  # their backward is over
        reducing = reduce_scatter(buffer, self.axis, async_op=True)

        def finish() -> Tensor:
            mine = reducing.wait()
            if self.stage == 1:
                return self.gradients[index].copy_(mine)
            for p in buckets.groups[index]:
                p.grad = None
            free(buffer)
            return self.gradients[index].add_(mine)  # to those of earlier micro-batches

        return Handle(finish)

    def zero_grad(self) -> None:
        """Clears the gradients of this rank's shards."""
        for gradient in self.gradients:
            gradient.zero_()

    def pieces(self) -> list[Piece]:
        """What this rank updates: the parts of parameters that lie in its shards."""
        found = []
        every = zip(self.buckets.groups, self.shards, self.gradients, strict=True)
        for group, shard, gradient in every:
            start = -self.axis.rank * len(shard)  # where a parameter begins, seen from the shard
            for p in group:
                part = slice(max(start, 0), max(start + p.numel(), 0))
                if len(shard[part]):
                    found.append(Piece(self.names[p], p, shard[part], gradient[part]))
                start += p.numel()
        return found

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the update of the pieces: all ranks get all parameters (stage 3: when used)."""
        with phase("optimizer"):
            for values, shard in zip(self.values, self.shards, strict=True):
                if self.stage == 3:
                    free(values)
                else:
                    values.copy_(all_gather(shard, self.axis))

    def whole_gradients(self) -> dict[Parameter, Tensor]:
        """After `finish_gradients`, the gradients put together from all of dp: collective."""
        found: dict[Parameter, Tensor] = {}
        with phase("other"):
            for group, gradient in zip(self.buckets.groups, self.gradients, strict=True):
                found |= views_of(group, all_gather(gradient, self.axis))
        return found

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every parameter has its memory; what is written there stays. Collective."""
        with phase("other"):
            self._fetch(range(len(self.values)))
        yield
        if self.stage == 3:
            for values, shard in zip(self.values, self.shards, strict=True):
                shard.copy_(self._mine(values))
                free(values)

    @torch.no_grad()
    def _fetch(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            if make_room(self.values[index]):
                self.values[index].copy_(all_gather(self.shards[index], self.axis))

    def _gather(self, unit: set[int], rest: set[int], *_: Any) -> None:
        """Before a unit's forward, and before its backward: its parameters instead of others'."""
        for index in range(len(self.values)):
            if index not in unit | rest:
                free(self.values[index])
        self._fetch(sorted(unit))

    def _leave(self, unit: set[int], rest: set[int], _: nn.Module, x: Any, output: Tensor) -> None:
        """After a unit's forward: its parameters go, until the gradient of its output is there."""
        if current_phase() != "recompute":  # where backward follows at once
            for index in unit:
                free(self.values[index])
        if output.requires_grad:
            output.register_hook(partial(self._gather, unit, rest))
