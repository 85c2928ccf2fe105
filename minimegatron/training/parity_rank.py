"""The ranks' side of parity: train this rank's part, and bring home all that can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimegatron.data_parallel.gradients import finish_gradients
from minimegatron.data_parallel.zero import Zero
from minimegatron.models.config import GPTConfig
from minimegatron.models.gpt import GPT
from minimegatron.ranks.ledger import Ledger, ledger
from minimegatron.ranks.mesh import Mesh
from minimegatron.training.data import slice_of
from minimegatron.training.forward_backward import forward_backward
from minimegatron.training.optimizer import gradient_norm, make_optimizer
from minimegatron.training.precision import half_precision, unscale_gradients

LR = 1e-3

State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass
class Run:
    """What the ranks train. `states`, if given, are loaded before each step: no free run then."""

    config: GPTConfig
    dtype: torch.dtype
    start: State
    batches: list[Batch]
    options: dict[str, Any]
    states: list[State] | None = None


@dataclass
class RankStep:
    """One step as one rank saw it.

    The first rank of tp and pp holds every dense tensor; another its own stage's, and on tp > 0
    those that are whole on every rank.
    """

    loss: Tensor
    tokens: int
    logits: Tensor  # (rank's batch, seq, padded vocab/tp)
    gradients: State
    grad_norm: Tensor
    parameters: State
    masks: State


@dataclass
class RankRun:
    """All steps of one rank, and what it sent in the first."""

    tp_rank: int
    pp_rank: int
    steps: list[RankStep]
    ledger: Ledger

    @property
    def holds_a_part(self) -> bool:
        """Whether other ranks hold what is missing here."""
        return self.tp_rank > 0 or self.pp_rank > 0


def train_on_rank(mesh: Mesh, run: Run) -> RankRun:
    """Trains this rank's part and brings back everything that can be compared."""
    half = run.dtype.itemsize < 4
    torch.set_default_dtype(torch.float32 if half else run.dtype)
    options = run.options
    model = GPT(run.config, mesh, options["chunks"], options["layers_per_stage"])
    model.load_full_state_dict(run.start)
    if half:
        half_precision(model, run.dtype)
    if options["zero"]:
        Zero(model, options["zero"])
    optimizer = make_optimizer(model, LR, betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.01  # on everything, as the oracle's AdamW(lr) does
    outputs: list[Tensor] = []
    mean_loss = model.mean_loss

    def noting(logits: Tensor, targets: Tensor) -> Tensor:
        outputs.append(logits.detach())
        return mean_loss(logits, targets)

    vars(model)["mean_loss"] = noting
    result = RankRun(mesh.tp.rank, mesh.pp.rank, [], Ledger())
    for i, batch in enumerate(run.batches):
        if run.states is not None:
            model.load_full_state_dict(run.states[i])
        mine = [t[slice_of(len(t), mesh.dp.size, mesh.dp.rank)].to(mesh.device) for t in batch]
        count = options["microbatches"]
        parts = [slice_of(len(mine[0]), count, m) for m in range(count)]
        outputs.clear()
        model.streams.record = []
        with ledger() as log:
            optimizer.zero_grad()
            scale = 2.0**10 if run.dtype == torch.float16 else 1.0  # exact; fp16 needs it
            microbatches = [(mine[0][part], mine[1][part]) for part in parts]
            loss = forward_backward(model, microbatches, options["schedule"], scale)
            finish_gradients(model)
            unscale_gradients(model, scale)
            norm = gradient_norm(model)
            optimizer.step()
        if i == 0:
            result.ledger = log
        result.steps.append(
            RankStep(
                loss,
                int((mine[1] != -100).sum()),
                torch.cat(outputs) if outputs else torch.empty(0),
                _kept(model, model.full_gradients()),
                norm,
                _kept(model, model.full_state_dict()),
                _joined(model.streams.record),
            )
        )
    return result


def _kept(model: GPT, state: State) -> State:
    """A dense dict, without what the first rank of tp and pp holds as well: less to send home."""
    kept, mesh = state, model.mesh
    if mesh.pp.rank:
        own = {model.dense_name(name) for name, _ in model.named_parameters()}
        kept = {name: kept[name] for name in own}
    if mesh.tp.rank:
        kept = {name: t for name, t in kept.items() if not model.is_sharded(name)}
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def _joined(record: list[tuple[str, Tensor]]) -> State:
    """The masks by site, the micro-batches joined along the batch."""
    sites: dict[str, list[Tensor]] = {}
    for site, mask in record:
        sites.setdefault(site, []).append(mask)
    return {site: torch.cat(masks) for site, masks in sites.items()}
