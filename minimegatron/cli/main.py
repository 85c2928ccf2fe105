"""The command line: `minimegatron doctor | demo | train | experiment | tables | bench`.

This file only declares the commands. Each imports its body, a file beside this one, when it is
called, so that `minimegatron --help` does not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Learn Megatron-LM (arXiv:1909.08053) by building it, on real processes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def doctor() -> None:
    """Check this machine, and print a cure for whatever it lacks."""
    from minimegatron.cli.doctor import run

    raise typer.Exit(run())


@app.command()
def demo(
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each run.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses into this file.")] = None,
) -> None:
    """Train a small GPT on 1, 2 and 4 ranks and compare: losses, messages, speed."""
    from minimegatron.cli.demo import run

    raise typer.Exit(run(steps, plot))


@app.command()
def train(
    tp: Annotated[int, typer.Option(min=1, help="Ranks that share each matrix.")] = 1,
    dp: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks that share the batch. Default 1; under torchrun the rest."),
    ] = None,
    pp: Annotated[int, typer.Option(min=1, help="Stages of the pipeline.")] = 1,
    schedule: Annotated[
        str, typer.Option(help="Of the pipeline: gpipe, 1f1b, interleaved or zb_h1.")
    ] = "1f1b",
    chunks: Annotated[int, typer.Option(min=1, help="Stages a rank, for interleaved.")] = 1,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step, all ranks together.")] = 16,
    microbatches: Annotated[int, typer.Option(min=1, help="Parts of a rank's batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 64,
    hidden: Annotated[int, typer.Option(min=1)] = 128,
    layers: Annotated[int, typer.Option(min=1)] = 2,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-3,
    data: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 text file or a folder. Default: Python's own documentation."),
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="bpe or bytes.")] = "bpe",
    vocab: Annotated[int, typer.Option(help="Tokens that bpe learns, at most.")] = 1024,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses into this file.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    zero: Annotated[int, typer.Option(help="Stage of ZeRO over dp: 0 (without) to 3.")] = 0,
    recompute: Annotated[str | None, typer.Option(help="full or selective.")] = None,
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel", help="Split over tp what lies between, too.")
    ] = False,
    compress: Annotated[
        str, typer.Option(help="Gradients over dp: none, fp16, bf16, top-k, 1-bit, powersgd.")
    ] = "none",
) -> None:
    """Train a GPT on real text: in one process, on tp x dp ranks, or under torchrun."""
    from minimegatron.cli.train import Settings, run

    settings = Settings(
        steps=steps, batch=batch, seq=seq, hidden=hidden, layers=layers, heads=heads, lr=lr,
        microbatches=microbatches, seed=seed, tokenizer=tokenizer, vocab=vocab,
        schedule=schedule, chunks=chunks, precision=precision, zero=zero, recompute=recompute,
        sequence_parallel=sequence_parallel,
        compress=compress,
    )  # fmt: skip
    raise typer.Exit(run(settings, tp=tp, dp=dp, pp=pp, data=data, plot=plot))


@app.command()
def experiment(
    name: Annotated[str | None, typer.Argument(help="Left out: lists them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Store it here. Default: NAME.json.")] = None,
) -> None:
    """Make the numbers again that a lesson draws from a file; minutes."""
    from minimegatron.cli.experiment import run

    raise typer.Exit(run(name, out))


@app.command()
def tables(
    name: Annotated[str | None, typer.Argument(help="Left out: all of them.")] = None,
) -> None:
    """Published figures of the papers beside what the course's formulas give."""
    from minimegatron.cli.tables import run

    raise typer.Exit(run(name))


@app.command()
def features() -> None:
    """Measure every feature against its absence: parity, bytes, memory, time; two minutes."""
    from minimegatron.cli.features import run

    raise typer.Exit(run())


@app.command()
def bench(
    parts: Annotated[list[str] | None, typer.Argument(help="Left out: all of them.")] = None,
) -> None:
    """Time the ranks, the model and each feature, against what they replace; a few minutes."""
    from minimegatron.cli.bench import run

    raise typer.Exit(run(parts))
