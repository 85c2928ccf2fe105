"""`minimegatron train`: a GPT on real text, in one process, on launched ranks, or under torchrun.

The same options everywhere. A plain process starts the ranks itself; a process that torchrun or
srun has started is one rank already, and takes its place on the mesh.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from rich.console import Console

from minimegatron.analysis.flops import parameter_count
from minimegatron.data_parallel.compression import compress_gradients
from minimegatron.data_parallel.zero import check_zero
from minimegatron.figures.style import rank_colour
from minimegatron.models.config import GPTConfig
from minimegatron.models.generate import generate
from minimegatron.models.gpt import GPT, spread
from minimegatron.pipeline_parallel.schedules import make_schedule
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.errors import RankError
from minimegatron.ranks.launch import launch
from minimegatron.ranks.ledger import phase
from minimegatron.ranks.mesh import Mesh, connect, single
from minimegatron.training.data import Corpus, check_split, make_corpus
from minimegatron.training.loop import History, train
from minimegatron.training.precision import PRECISIONS
from minimegatron.training.text import default_text, read_text

PROMPT = "The"  # no space behind it: the tokens of words begin with their space
WORDS = 60  # tokens of the sample


@dataclass(frozen=True)
class Settings:
    """Sizes of a run. The defaults learn clearly more than word counts in half a minute."""

    steps: int = 400
    batch: int = 16
    seq: int = 64
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    lr: float = 4e-3
    microbatches: int = 1
    seed: int = 0
    tokenizer: str = "bpe"
    vocab: int = 1024
    precision: str = "fp32"
    zero: int = 0
    schedule: str = "1f1b"
    chunks: int = 1
    recompute: str | None = None
    sequence_parallel: bool = False
    compress: str = "none"

    def config(self, corpus: Corpus) -> GPTConfig:
        """The model for this text."""
        return GPTConfig(
            corpus.vocab_size, self.seq, self.hidden, self.layers, self.heads,
            sequence_parallel=self.sequence_parallel, recompute=self.recompute,
        )  # fmt: skip

    def check(self, pp: int = 1) -> None:
        """ValueError for what there is not or what does not go together: before any rank starts."""
        spread(self.layers, pp, self.chunks)
        make_schedule(self.schedule, pp, self.microbatches, self.chunks)
        tiny = GPT(GPTConfig(1, 1, 1, 1, 1, recompute=self.recompute))
        if self.precision not in PRECISIONS:
            allowed = ", ".join(PRECISIONS)
            raise ValueError(f"precision={self.precision!r} is not one of {allowed}")
        if self.zero:
            check_zero(self.zero, pp)
        compress_gradients(tiny, self.compress)
        if self.zero and self.compress != "none":
            raise ValueError(f"zero={self.zero} with compress={self.compress!r}: take one of them")

    def features(self, tp: int, dp: int, pp: int) -> list[str]:
        """What is not plain in this run, and what of it does nothing at this split."""
        chosen = {
            f"precision={self.precision}": (self.precision != "fp32", True),
            f"zero={self.zero}": (self.zero > 0, dp > 1),
            f"recompute={self.recompute}": (self.recompute is not None, True),
            "sequence-parallel": (self.sequence_parallel, tp > 1),
            f"compress={self.compress}": (self.compress != "none", dp > 1),
            f"schedule={self.schedule}": (pp * self.chunks > 1, True),
            f"chunks={self.chunks}": (self.chunks > 1, True),
        }
        idle = " (nothing to do at this split)"
        return [name + ("" if works else idle) for name, (on, works) in chosen.items() if on]


@dataclass(frozen=True)
class Outcome:
    """A run's history and a sample of its model's text."""

    history: History
    sample: str


def make_settings_corpus(settings: Settings, data: Path | None) -> Corpus:
    """The text of `data`, or the default one, tokenized."""
    text = default_text() if data is None else read_text(data)
    return make_corpus(text, settings.seq, settings.tokenizer, settings.vocab)


def train_on(
    mesh: Mesh, settings: Settings, corpus: Corpus, say: Callable[[str], None] | None = print
) -> Outcome:
    """One rank's run: the same weights and batches at every split. Rank 0 tells how it goes."""
    _same_text_everywhere(mesh, corpus)
    torch.manual_seed(settings.seed)
    model = GPT(settings.config(corpus), mesh, settings.chunks)
    compress_gradients(model, settings.compress)
    every = max(1, settings.steps // 5)

    def report(step: int, loss: float) -> None:
        if say is not None and mesh.rank == 0 and (step + 1) % every == 0:
            say(f"step {step + 1:5d} of {settings.steps}   loss {loss:.3f}")

    history = train(
        model,
        corpus,
        steps=settings.steps,
        batch=settings.batch,
        microbatches=settings.microbatches,
        lr=settings.lr,
        validate_every=every,
        seed=settings.seed,
        precision=settings.precision,
        zero=settings.zero,
        schedule=settings.schedule,
        report=report,
    )
    return Outcome(history, sample(model, corpus, settings.seed))


def sample(model: GPT, corpus: Corpus, seed: int = 0) -> str:
    """What the model writes after the prompt, the same on every rank: collective."""
    prompt = torch.tensor([corpus.tokenizer.encode(PROMPT)], device=model.mesh.device)
    with phase("other"):
        tokens = generate(model, prompt, WORDS, temperature=0.7, seed=seed)
    return printable(corpus.tokenizer.decode(tokens[0].tolist()))


def printable(text: str) -> str:
    """The text without control characters: bytes of a raw model could rule a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _same_text_everywhere(mesh: Mesh, corpus: Corpus) -> None:
    """Machines may ship other versions of the default text: better an error than nonsense."""
    number = float(zlib.crc32(torch.cat([corpus.train, corpus.validation]).numpy().tobytes()))
    both = torch.tensor([number, -number], dtype=torch.float64, device=mesh.device)
    with phase("other"):
        largest, smallest = all_reduce(both, mesh.axis("tp", "dp", "pp"), op="max").tolist()
    if largest != -smallest:
        raise ValueError("the ranks read different texts or tokenizers: give all the same --data")


def run(
    settings: Settings,
    *,
    tp: int = 1,
    dp: int | None = None,
    pp: int = 1,
    data: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Trains, prints speeds, losses and a sample; 0, or 1 after printing what went wrong."""
    console = Console(highlight=False)
    try:
        if plot is not None:
            check_plot(plot)
        settings.check(pp)
        corpus = make_settings_corpus(settings, data)
        if _started_as_a_rank():
            mesh = connect(tp=tp, pp=pp, dp=dp)
            outcome = train_on(mesh, settings, corpus)
            first, sizes = mesh.rank == 0, (mesh.tp.size, mesh.dp.size, pp)
            if dist.is_initialized():
                dist.destroy_process_group()
        else:
            first, sizes = True, (tp, dp or 1, pp)
            config = settings.config(corpus)
            check_split(config, *sizes[:2], settings.batch, settings.microbatches)
            if sizes == (1, 1, 1):
                outcome = train_on(one_process(), settings, corpus)
            else:
                outcomes = launch(train_on, settings, corpus, tp=tp, dp=dp or 1, pp=pp, timeout=600)
                outcome = outcomes[0]
        if first:
            _print_outcome(console, settings, corpus, outcome, sizes)
            if plot is not None:
                save_plot({_split(sizes): outcome.history}, corpus, plot)
                console.print(f"losses drawn in {plot}", markup=False)
    except (ValueError, FloatingPointError, OSError, RankError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


def one_process() -> Mesh:
    """This process as the only rank, on its GPU if it has one: where `launch` would put it."""
    return single("cuda" if torch.cuda.is_available() else "cpu")


def _started_as_a_rank() -> bool:
    """Whether torchrun, or srun with several tasks, started this process."""
    srun = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys() or srun


def _split(sizes: tuple[int, int, int]) -> str:
    tp, dp, pp = sizes
    return f"tp={tp} x dp={dp}" + (f" x pp={pp}" if pp > 1 else "")


def _print_outcome(
    console: Console,
    settings: Settings,
    corpus: Corpus,
    outcome: Outcome,
    sizes: tuple[int, int, int],
) -> None:
    history, config = outcome.history, settings.config(corpus)
    split = f"{parameter_count(config):,} parameters on {_split(sizes)}"
    lines = [
        ", ".join([split, *settings.features(*sizes)]),
        f"{history.tokens_per_second:,.0f} tokens/s, {history.flops_per_second / 1e9:,.1f} model "
        "GFLOP/s (matrix products, forward and backward)",
        f"training loss {history.losses[-1]:.3f}, validation loss {history.validation[-1][1]:.3f} "
        f"nats per token; unigram entropy of the text {corpus.unigram_entropy():.3f}",
        "",
        outcome.sample,
    ]
    if history.scales:
        skipped = f"{len(history.skipped)} steps skipped"
        lines.insert(1, f"loss scale {history.scales[-1]:g} at the end, {skipped}")
    console.print("\n".join(lines), markup=False)


def check_plot(file: Path) -> None:
    """ValueError where a picture cannot be saved there: before the run, not after it."""
    kinds = Figure().canvas.get_supported_filetypes()
    if file.suffix[1:] not in kinds:
        raise ValueError(f"{file}: a picture's name ends in one of {', '.join(sorted(kinds))}")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}")


def save_plot(histories: dict[str, History], corpus: Corpus, file: Path) -> None:
    """Training (line) and validation (dots) losses of runs over steps, and the unigram entropy."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    styles = ("-", "--", "-.", ":")
    for i, (label, history) in enumerate(histories.items()):
        colour, style = rank_colour(i), styles[i % len(styles)]
        axes.plot(history.losses, style, color=colour, linewidth=1, label=label)
        steps, losses = zip(*history.validation, strict=True)
        axes.plot(steps, losses, "o", color=colour, label=f"{label}, validation")
    entropy = corpus.unigram_entropy()
    axes.axhline(entropy, color="black", linestyle=":", label="unigram entropy")
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
