"""A feature against its absence: two models that train in turns, on the same ranks.

What `minimegatron features` and `minimegatron bench features` measure. A machine's speed drifts
within a minute, so the two take turns and the ratios of the rounds count; bytes are the ledger's
and those of the storages that a rank holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minimegatron.data_parallel.compression import Compression, compress_gradients
from minimegatron.data_parallel.gradients import accumulate_gradients, finish_gradients
from minimegatron.data_parallel.hierarchical import reduce_by_nodes
from minimegatron.data_parallel.pieces import pieces
from minimegatron.data_parallel.zero import Zero
from minimegatron.models.config import GPTConfig
from minimegatron.models.gpt import GPT
from minimegatron.ranks.ledger import ledger
from minimegatron.ranks.mesh import Mesh
from minimegatron.ranks.using import use
from minimegatron.training.optimizer import make_optimizer
from minimegatron.training.precision import (
    PRECISIONS,
    DynamicLossScaler,
    half_precision,
    optimizer_step,
)

SIZES: dict[str, Any] = {
    "vocab_size": 256, "seq_length": 64, "hidden_size": 128, "num_layers": 2, "num_heads": 4,
}  # fmt: skip
BATCH = 8  # sequences of all ranks together


@dataclass(frozen=True)
class Feature:
    """One way to train differently, on tp x dp ranks.

    `base` are fields of GPTConfig for both sides, `config` those of the feature alone; the other
    fields are the feature's too. `part` is where the course has it, `name` what the tables say.
    """

    part: str
    name: str
    tp: int = 1
    dp: int = 1
    base: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    zero: int = 0
    compress: Mapping[str, Any] = field(default_factory=dict)
    ranks_per_node: int = 0
    using: Mapping[str, Any] = field(default_factory=dict)

    @property
    def absent(self) -> Feature:
        """The same split without the feature."""
        return Feature(self.part, "plain", self.tp, self.dp, self.base)


@dataclass(frozen=True)
class Measured:
    """One side of a comparison, on one rank: bytes, and seconds of each round."""

    wire: float
    saved: int
    owned: int
    seconds: list[float]


class Trainer:
    """A model with everything a feature asks for, ready to take steps on one batch."""

    def __init__(self, mesh: Mesh, feature: Feature, sizes: Mapping[str, Any]) -> None:
        torch.manual_seed(0)
        config = GPTConfig(**{**SIZES, **sizes, **feature.base, **feature.config})
        with use(feature.using):
            self.model = GPT(config, mesh)
        if dtype := PRECISIONS[feature.precision]:
            half_precision(self.model, dtype)
        if feature.zero:
            Zero(self.model, feature.zero)
        if feature.compress:
            compress_gradients(self.model, **feature.compress)
        if feature.ranks_per_node:
            reduce_by_nodes(self.model, feature.ranks_per_node)
        self.scaler = DynamicLossScaler(2.0**10) if feature.precision == "fp16" else None
        self.optimizer = make_optimizer(self.model)
        draw = torch.Generator().manual_seed(mesh.dp.rank)
        shape = (BATCH // mesh.dp.size, config.seq_length + 1)
        tokens = torch.randint(config.vocab_size, shape, generator=draw).to(mesh.device)
        self.batch = [(tokens[:, :-1], tokens[:, 1:].contiguous())]

    def step(self) -> None:
        """One whole step: forward, backward, gradients finished and clipped, AdamW."""
        self.optimizer.zero_grad(set_to_none=False)
        scale = self.scaler.scale if self.scaler else 1.0
        loss = accumulate_gradients(self.model, self.batch, scale)
        finish_gradients(self.model)
        optimizer_step(self.model, self.optimizer, 1.0, self.scaler)
        float(loss)  # waits for the device

    def saved(self) -> int:
        """Bytes that forward keeps for backward, parameters left out."""
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(x: Tensor) -> Tensor:
            kept[x.untyped_storage()._cdata] = x.untyped_storage()
            return x.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = self.model.loss(*self.batch[0])
        own = {p.untyped_storage()._cdata for p in self.model.parameters()}
        total = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
        loss.backward()
        finish_gradients(self.model)
        return total

    def owned(self) -> int:
        """Bytes between two steps: parameters, gradients, optimizer state, residuals."""
        model, held = self.model, list[Tensor | None]()
        for parameter in model.parameters():
            held += [parameter.data, parameter.grad]
        for piece in pieces(model):
            held += [piece.values, piece.gradient]
        for group in self.optimizer.param_groups:
            held += group["params"]
        for state in self.optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, Tensor)]
        if isinstance(model.gradient_reducer, Compression):
            held += model.gradient_reducer.residual.values()
        return storage_bytes(tensor for tensor in held if tensor is not None)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors occupy; a storage that several share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def compare(
    mesh: Mesh, feature: Feature, sizes: Mapping[str, Any], rounds: int = 5
) -> tuple[Measured, Measured]:
    """With and without the feature, in turns on these ranks: what each rank sends, holds, takes."""
    sides = [Trainer(mesh, side, sizes) for side in (feature, feature.absent)]
    wire, saved, owned = list[float](), list[int](), list[int]()
    for side in sides:
        side.step()  # warms up; the optimizer has its state now
        with ledger() as log:
            side.step()
        wire.append(log.wire_bytes())
        owned.append(side.owned())
        saved.append(side.saved())
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for side, taken in zip(sides, seconds, strict=True):
            begin = time.perf_counter()
            side.step()
            taken.append(time.perf_counter() - begin)
    one, other = (Measured(*of) for of in zip(wire, saved, owned, seconds, strict=True))
    return one, other
