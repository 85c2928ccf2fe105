"""A training run: the same function in one process, on launched ranks and under torchrun.

A step is: each rank's part of the global batch in micro-batches, gradients finished over dp,
rid of the loss scale and clipped by their global norm, AdamW at the scheduled rate. Nothing here
knows how the model is split; the model's mesh says which sequences are this rank's. Megatron-LM:
`train_step` and `pretrain` in `megatron/training/training.py`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from minimegatron.analysis.flops import flops_per_token
from minimegatron.data_parallel.gradients import finish_gradients
from minimegatron.data_parallel.zero import Zero
from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.ledger import Ledger, ledger, phase
from minimegatron.ranks.mesh import Mesh
from minimegatron.training.data import Corpus, check_split, slice_of
from minimegatron.training.forward_backward import forward_backward
from minimegatron.training.optimizer import learning_rate, make_optimizer
from minimegatron.training.precision import (
    PRECISIONS,
    DynamicLossScaler,
    half_precision,
    optimizer_step,
)

VALIDATION_SEQUENCES = 64


@dataclass
class History:
    """What a run brought, the same on every rank.

    `losses[i]` is the mean loss of step i's global batch before its update, `validation` the loss
    after given numbers of steps, both in nats per token. Speeds count training steps only, the
    first left out (it warms up); `flops_per_second` are model FLOPs (analysis/flops.py) of all
    ranks together. `ledger` is what this rank sent in its last step. `scales[i]` is the loss scale
    of step i (empty without a scaler), `skipped` the steps that an overflow made void.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    flops_per_second: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    scales: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)


def train(
    model: GPT, corpus: Corpus, *, steps: int, batch: int, microbatches: int = 1, lr: float = 1e-3,
    warmup: int | None = None, weight_decay: float = 0.1, max_norm: float = 1.0,
    validate_every: int | None = None, seed: int = 0, precision: str = "fp32",
    scaler: DynamicLossScaler | None = None, zero: int = 0, schedule: str = "1f1b",
    report: Callable[[int, float], None] | None = None,
) -> History:  # fmt: skip
    """Trains for `steps` on `batch` sequences a step, counted over all ranks together.

    The batch of a step depends on `seed` and the step alone, not on the split. Warm-up takes a
    tenth of the steps if not given. Validates after the last step and, if asked, every so many.
    `report(step, loss)` is called after each step with this rank's own loss. On a terminal the
    first rank shows a progress bar.

    `precision` "fp16" and "bf16" cast the model; "fp32" leaves it in the dtype it has. fp16 gets a
    `scaler` if none is given. `zero` is the stage of ZeRO over dp, `schedule` that of a pipeline.
    Raises ValueError for another precision or schedule and where the batch does not give every
    micro-batch a sequence, FloatingPointError when a loss is not finite.
    """
    mesh, seq = model.mesh, model.config.seq_length
    check_split(model.config, mesh.tp.size, mesh.dp.size, batch, microbatches)
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    warmup = steps // 10 if warmup is None else warmup
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}")
    if (dtype := PRECISIONS[precision]) is not None:
        half_precision(model, dtype)
    if zero and model.zero is None:
        Zero(model, zero)
    if precision == "fp16" and scaler is None:
        scaler = DynamicLossScaler()
    optimizer = make_optimizer(model, lr, weight_decay)
    history, losses, seconds = History(), [], []
    model.train()
    with _progress_bar(mesh, steps) as advance:
        for step in range(steps):
            parts = _my_microbatches(corpus.batch(step, batch, seq, seed), microbatches, mesh)
            begin = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr, warmup)
            with ledger() as log:
                optimizer.zero_grad(set_to_none=False)  # the flat buckets stay the gradients
                scale = 1.0 if scaler is None else scaler.scale
                loss = forward_backward(model, parts, schedule, scale)
                finish_gradients(model)
                if not optimizer_step(model, optimizer, max_norm, scaler):
                    history.skipped.append(step)
            mine = float(loss)  # waits for the device: the time is that of a whole step
            seconds.append(time.perf_counter() - begin)
            if not math.isfinite(mine):
                raise FloatingPointError(f"the loss of step {step} is {mine}: try a smaller lr")
            losses.append((mine, sum(int((t != -100).sum()) for _, t in parts)))
            history.ledger = log
            if scaler is not None:
                history.scales.append(scale)
            advance(mine)
            if report is not None:
                report(step, mine)
            done = step + 1
            if done == steps or (validate_every and done % validate_every == 0):
                history.validation.append((done, validation_loss(model, corpus)))
    history.losses = _means_over_ranks(losses, mesh)
    timed = seconds[1:] or seconds
    history.tokens_per_second = batch * seq * len(timed) / sum(timed)
    history.flops_per_second = history.tokens_per_second * flops_per_token(model.config)
    return history


@torch.no_grad()
def validation_loss(model: GPT, corpus: Corpus, sequences: int = VALIDATION_SEQUENCES) -> float:
    """Nats per token on the same `sequences` windows of the validation part, shared out over dp."""
    mesh = model.mesh
    batch = corpus.validation_batch(max(sequences, mesh.dp.size), model.config.seq_length)
    training = model.training
    model.eval()
    try:
        with phase("other"):
            [(tokens, targets)] = _my_microbatches(batch, 1, mesh)
            losses = [
                (float(forward_backward(model, [(x, y)])), y.numel())
                for x, y in zip(tokens.split(16), targets.split(16), strict=True)
            ]
    finally:
        model.train(training)
    count = sum(n for _, n in losses)
    mean = sum(loss * n for loss, n in losses) / count
    return _means_over_ranks([(mean, count)], mesh)[0]


def _my_microbatches(
    batch: tuple[Tensor, Tensor], microbatches: int, mesh: Mesh
) -> list[tuple[Tensor, Tensor]]:
    """This rank's part of the global batch, on its device, in micro-batches."""
    tokens, targets = (t[slice_of(len(t), mesh.dp.size, mesh.dp.rank)] for t in batch)
    parts = [slice_of(len(tokens), microbatches, i) for i in range(microbatches)]
    return [(tokens[p].to(mesh.device), targets[p].to(mesh.device)) for p in parts]


def _means_over_ranks(losses: list[tuple[float, int]], mesh: Mesh) -> list[float]:
    """Means over all tokens of dp, from each rank's (mean, tokens): one message for all steps."""
    weighted = torch.tensor([(loss * n, n) for loss, n in losses], dtype=torch.float64)
    with phase("other"):
        total = all_reduce(weighted.to(mesh.device), mesh.dp)
    return (total[:, 0] / total[:, 1]).tolist()


@contextlib.contextmanager
def _progress_bar(mesh: Mesh, steps: int) -> Iterator[Callable[[float], None]]:
    """Advances a bar by one step and shows the loss; nothing but on the first rank's terminal."""
    if mesh.rank or not sys.stdout.isatty():
        yield lambda loss: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("steps", total=steps, loss=math.nan)
        yield lambda loss: bar.update(task, advance=1, loss=loss)
