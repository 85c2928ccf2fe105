"""`minimegatron demo`: one small GPT, one real text, four ways to run it, the same result.

The course in one table. Each run starts from the same weights and sees the same sequences; what
differs is who holds what, and so what must be sent.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from minimegatron.analysis.flops import parameter_count
from minimegatron.cli.train import (
    Outcome,
    Settings,
    check_plot,
    make_settings_corpus,
    one_process,
    save_plot,
    train_on,
)
from minimegatron.ranks.errors import RankError
from minimegatron.ranks.launch import launch
from minimegatron.training.parity import parity
from minimegatron.training.report import ParityReport

SPLITS = {
    "1 process": (1, 1, 1),
    "tp=2": (2, 1, 1),
    "dp=2": (1, 2, 1),
    "tp=2 x dp=2": (2, 2, 1),
}
STEP_PHASES = ("forward", "backward", "optimizer")


def run(
    steps: int | None = None,
    plot: Path | None = None,
    settings: Settings | None = None,
    pp: int = 1,
) -> int:
    """Runs all four, prints the table and a sample; 1 if a run fails or is not equal.

    With pp > 1 a fifth one, in a pipeline, with the schedule, chunks and micro-batches given.
    """
    console = Console(highlight=False)
    settings = settings or Settings()
    settings = settings if steps is None else replace(settings, steps=steps)
    begin = time.perf_counter()
    splits = SPLITS | ({f"pp={pp} {settings.schedule}": (1, 1, pp)} if pp > 1 else {})
    plain = replace(settings, schedule="1f1b", chunks=1)
    try:
        settings.check(pp)
        if plot is not None:
            check_plot(plot)
        corpus = make_settings_corpus(settings, None)
        config = settings.config(corpus)
        console.print(
            f"A GPT of {parameter_count(config):,} parameters learns "
            f"{len(corpus.train):,} tokens of Python's own documentation, {settings.steps} steps "
            "each time."
        )
        outcomes: dict[str, Outcome] = {}
        reports: dict[str, ParityReport] = {}
        for name, (tp, dp, pipeline) in splits.items():
            chosen = settings if pipeline > 1 else plain
            sizes: dict[str, Any] = {"tp": tp, "dp": dp, "pp": pipeline}
            console.print(f"  {name} ...")
            if name == "1 process":
                outcomes[name] = train_on(one_process(), chosen, corpus, say=None)
            else:
                outcomes[name] = launch(train_on, chosen, corpus, None, timeout=600, **sizes)[0]
                how: dict[str, Any] = {"schedule": chosen.schedule, "chunks": chosen.chunks}
                how |= {"microbatches": chosen.microbatches, "seed": chosen.seed}
                reports[name] = parity(config, **sizes, **how)
        console.print(_table(outcomes, reports))
        console.print(NOTES, soft_wrap=True)
        if plot is not None:
            save_plot({name: o.history for name, o in outcomes.items()}, corpus, plot)
    except (ValueError, FloatingPointError, OSError, RankError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    last = outcomes["tp=2 x dp=2"]
    loss, entropy = last.history.validation[-1][1], corpus.unigram_entropy()
    verdict = "has learnt context" if loss < entropy else "has not learnt any context yet"
    console.print(
        f"Validation loss {loss:.2f} nats per token. Knowing only how frequent each token is\n"
        f"costs {entropy:.2f}, the unigram entropy of the text: the model {verdict}.",
        soft_wrap=True,
    )
    console.print(f"\nAfter {settings.steps} steps on tp=2 x dp=2 it writes:\n", markup=False)
    console.print(last.sample, markup=False)
    console.print(f"\n{time.perf_counter() - begin:.0f} s in all")
    return 0 if all(report.ok for report in reports.values()) else 1


def _table(outcomes: dict[str, Outcome], reports: dict[str, ParityReport]) -> Table:
    """A row a run: losses, how equal it is, what a rank sent in a step, how fast."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)  # within 80 columns
    table.add_column("", no_wrap=True)
    for title in ("train\nloss", "valid.\nloss", "parity\nerror", "drift of\nlosses"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("collectives\na step", "kB\na step", "tokens/s"):
        table.add_column(title, justify="right", no_wrap=True)
    reference = torch.tensor(outcomes["1 process"].history.losses)
    for name, outcome in outcomes.items():
        history, report = outcome.history, reports.get(name)
        drift = float((torch.tensor(history.losses) - reference).abs().max())
        log = history.ledger
        table.add_row(
            name,
            f"{history.losses[-1]:.3f}",
            f"{history.validation[-1][1]:.3f}",
            f"{max(report.errors.values()):.0e}" if report else "",
            f"{drift:.0e}" if report else "",
            str(sum(log.count(phase=p) for p in STEP_PHASES)),
            f"{sum(log.bytes(phase=p) for p in STEP_PHASES) / 1e3:,.0f}",
            f"{history.tokens_per_second:,.0f}",
        )
    return table


NOTES = """\
Losses: nats per token, at the end. Parity error: the worst relative difference
from one process in loss, logits, gradients and parameters over 3 steps in
float64; equal is <= 1e-10. Drift: the largest difference of a training loss in
these float32 runs, where rounding grows. Collectives and kB: what one rank took
part in, from its ledger.
"""
