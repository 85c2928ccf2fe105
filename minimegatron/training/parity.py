"""Parity: a model on many ranks against the same model in one process, number by number.

The oracle (`oracle.py`) trains the dense model in float64. The ranks train the split one from the
same parameters on the same batches. Then everything is compared: loss, logits, every gradient put
together from its shards, the global gradient norm, and the parameters after each AdamW step. Noise
on *all* initial parameters (zero biases hide a bias added twice) and unequal numbers of real
targets (equal ones hide a mean of means) keep bugs from hiding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minimegatron.data_parallel.zero import check_zero
from minimegatron.models.config import GPTConfig
from minimegatron.models.gpt import GPT, spread
from minimegatron.pipeline_parallel.schedules import make_schedule
from minimegatron.ranks.launch import launch
from minimegatron.ranks.mesh import single
from minimegatron.tensor_parallel.dropout import AGAIN
from minimegatron.training import oracle
from minimegatron.training.data import check_split
from minimegatron.training.parity_rank import (
    LR,
    Batch,
    RankRun,
    Run,
    State,
    train_on_rank,
)
from minimegatron.training.report import ParityReport, bands_of

NOISE = 0.05
CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(GPTConfig))
OPTIONS: dict[str, Any] = {
    "batch": None, "microbatches": 1, "zero": 0, "schedule": "1f1b", "chunks": 1,
    "layers_per_stage": None, "using": None, "timeout": 60.0, "seed": 0,
}  # fmt: skip


def parity(
    config: GPTConfig,
    tp: int = 1,
    dp: int = 1,
    pp: int = 1,
    steps: int = 3,
    dtype: torch.dtype = torch.float64,
    **features: Any,
) -> ParityReport:
    """Trains `config` for `steps` on tp*dp*pp ranks and compares every number with one process.

    Features are fields of GPTConfig (they override `config`) and: `batch`, the global number of
    sequences (default 2 per rank and micro-batch; any number that gives each one at least one);
    `microbatches`; `zero`, the stage of ZeRO over dp; of a pipeline the `schedule` ("gpipe",
    "1f1b", "interleaved" or "zb_h1"), `chunks` a rank and `layers_per_stage`; `using`, pieces in
    place of the package's; `timeout` in seconds; `seed`.

    float64: a free run, all compared at every step. float32: loss, logits and gradients one step
    from the oracle's state, parameters after a free run (AdamW amplifies rounding). bfloat16 and
    float16: as float32, with float32 masters and gradients, fp16 with the loss times 2**10; all
    start from parameters that `dtype` can hold; the bands are derived in `bands_of`. Raises
    ValueError for what does not divide or go together, TypeError for an unknown feature, RankError
    when a rank fails.
    """
    config, options = _split_features(config, pp, features)
    microbatches, zero, chunks = (options[name] for name in ("microbatches", "zero", "chunks"))
    batch = 2 * dp * microbatches if options["batch"] is None else options["batch"]
    check_split(config, tp, dp, batch, microbatches)
    bands = bands_of(dtype, config.num_layers, steps * LR / NOISE)
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    seed = options["seed"]
    start = _noisy_state(config, seed, dtype)
    batches = [_batch(config, batch, seed + step, tp) for step in range(steps)]
    run = Run(config, dtype, start, batches, options)
    how: dict[str, Any] = {"tp": tp, "dp": dp, "pp": pp}
    how |= {key: options[key] for key in ("using", "timeout", "seed")}
    free = launch(train_on_rank, run, **how)

    count = f"{steps} step" + ("s" if steps > 1 else "")
    split = f"tp={tp} dp={dp}" + (f" zero={zero}" if zero else "")
    if pp * chunks > 1:
        split += f" pp={pp} {options['schedule']}" + (f" chunks={chunks}" if chunks > 1 else "")
    title = f"parity {split}, {str(dtype).removeprefix('torch.')}, {count}"
    report = ParityReport(title, bands, [rank.ledger for rank in free])
    masks = None
    if config.dropout > 0:
        masks = [_whole_masks(free, step, config, report) for step in range(steps)]
    wanted = oracle.train(
        {name: value.double() for name, value in start.items()},
        batches,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        layer_norm=config.layer_norm,
        dropout_p=config.dropout,
        masks=masks,
        lr=LR,
    )
    judged = free
    if dtype != torch.float64:
        states = [start, *(step.parameters for step in wanted[:-1])]
        judged = launch(train_on_rank, dataclasses.replace(run, states=states), **how)
    for i, step in enumerate(wanted):
        _compare_step(report, judged, i, step, config, tp * dp)
        for rank in free:
            found = rank.steps[i].parameters
            report.compare("parameters", found, step.parameters, partly=rank.holds_a_part)
            if "updates" in bands:
                off = _distance(found, step.parameters) / _distance(start, step.parameters)
                report.note("updates", "", off)
    return report


def _split_features(
    config: GPTConfig, pp: int, features: Mapping[str, Any]
) -> tuple[GPTConfig, dict[str, Any]]:
    """The config with its overrides, and the options with their defaults."""
    known = (*CONFIG_FIELDS, *OPTIONS)
    for name in features:
        if name not in known:
            raise TypeError(
                f"parity knows no feature {name!r}; it knows {', '.join(sorted(known))}"
            )
    overrides = {name: value for name, value in features.items() if name in CONFIG_FIELDS}
    options = OPTIONS | {name: value for name, value in features.items() if name in OPTIONS}
    config = dataclasses.replace(config, **overrides)
    if options["zero"]:
        check_zero(options["zero"], pp)
    spread(config.num_layers, pp, options["chunks"], options["layers_per_stage"])
    make_schedule(options["schedule"], pp, options["microbatches"], options["chunks"])
    return config, options


def _noisy_state(config: GPTConfig, seed: int, dtype: torch.dtype) -> State:
    """The dense initial parameters of `seed`, each with noise added, in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = GPT(config, single()).full_state_dict()
        return {
            name: (value + NOISE * torch.randn(value.shape)).to(dtype)
            for name, value in state.items()
        }


def _batch(config: GPTConfig, size: int, seed: int, tp: int) -> Batch:
    """Random tokens and targets (size, seq); each sequence has more real targets than the last."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, config.seq_length)
    # The first and last token of every shard are in it: a range off by one hides in others.
    first = torch.arange(0, config.vocab_size, -(-config.vocab_size // tp))
    edges = torch.cat([first, first - 1]) % config.vocab_size

    def draw() -> Tensor:
        some = torch.randint(config.vocab_size, (size * config.seq_length,), generator=generator)
        some[: len(edges)] = edges[: len(some)]
        return some[torch.randperm(len(some), generator=generator)].view(shape)

    tokens, targets = draw(), draw()
    order = torch.rand(shape, generator=generator).argsort(dim=1)
    real = (config.seq_length * torch.arange(1, size + 1) // (size + 1)).clamp(min=1)
    return tokens, targets.masked_fill(order >= real[:, None], -100)


def _whole_masks(ranks: list[RankRun], step: int, config: GPTConfig, report: ParityReport) -> State:
    """The masks of the whole batch and all heads, after a look at who drew the same ones."""
    tp = 1 + max(rank.tp_rank for rank in ranks)
    groups = [ranks[i : i + tp] for i in range(0, len(ranks), tp)]
    whole: dict[str, list[Tensor]] = {}
    report.note("masks", "", 0.0)
    for group in groups:
        for site, first in group[0].steps[step].masks.items():
            if site.endswith(AGAIN):
                continue
            masks = [rank.steps[step].masks[site] for rank in group]
            equal = [torch.equal(first, other) for other in masks[1:]]
            # Of attention each rank has other heads, with sequence parallelism other tokens.
            split = site.endswith(".weights") or config.sequence_parallel
            right = not any(equal) if split else all(equal)
            report.note("masks", site, 0.0 if right else float("inf"))
            whole.setdefault(site, []).append(torch.cat(masks, dim=1) if split else first)
            inside = site.endswith(".weights") if config.recompute == "selective" else "." in site
            if config.recompute and inside:  # recompute must have drawn it a second time
                again = [r.steps[step].masks.get(site + AGAIN, first[:0]) for r in group]
                right = all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
                report.note("masks", site + AGAIN, 0.0 if right else float("inf"))
    joined = {site: torch.cat(masks) for site, masks in whole.items()}
    for site in oracle.sites(config.num_layers):
        if (
            site not in joined
        ):  # a layer that forgot this dropout: the oracle keeps everything there
            report.note("masks", f"{site} (never drawn)", float("inf"))
            joined[site] = torch.full((1,), 1 - config.dropout, dtype=torch.float64)
    return joined


def _distance(a: State, b: State) -> float:
    """The Euclidean length of a - b, over the tensors that `a` holds."""
    return float(torch.stack([(a[n].double() - b[n]).norm() for n in a]).norm())


def _compare_step(
    report: ParityReport, runs: list[RankRun], i: int, step: oracle.Step, config: GPTConfig, n: int
) -> None:
    """Loss, logits and gradients of step i, from every rank that holds them.

    Each of the pipeline's stages has `n` ranks; the last one has the logits.
    """
    tp = 1 + max(run.tp_rank for run in runs)
    ranks = [run.steps[i] for run in runs]
    last = ranks[-n:]
    tokens = sum(rank.tokens for rank in last[::tp])
    for t in range(tp):
        column = last[t::tp]  # the same part of the model, all of the batch
        loss = torch.stack([rank.loss.double() * rank.tokens for rank in column]).sum() / tokens
        report.compare("loss", {"loss": loss}, {"loss": step.loss})
    rows = [torch.cat([r.logits for r in last[i : i + tp]], -1) for i in range(0, n, tp)]
    logits = torch.cat(rows)[..., : config.vocab_size]
    report.compare("logits", {"logits": logits}, {"logits": step.logits})
    for run, rank in zip(runs, ranks, strict=True):
        report.compare("gradients", rank.gradients, step.gradients, partly=run.holds_a_part)
        report.compare("grad_norm", {"grad_norm": rank.grad_norm}, {"grad_norm": step.grad_norm})
