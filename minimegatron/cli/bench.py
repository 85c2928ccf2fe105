"""`minimegatron bench`: this machine's numbers beside the design's, each paired in one run.

A machine's speed drifts by tens of percent within a minute, so nothing is compared across runs: the
two sides of a row take turns, and the row shows the median of the rounds' ratios. The targets
belong to a 2-core machine without a GPU; they are reported and gate nothing. A feature has no
target: it trades time for memory or bytes, and its row says how much.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import minimegatron as mm
from minimegatron.training.optimizer import make_optimizer

# The step of design.md's table: hidden 512, 4 layers, batch 4 x 256, vocabulary 8192.
CONFIG = {"hidden_size": 512, "num_layers": 4, "num_heads": 8, "seq_length": 256}
VOCABULARY, BATCH = 8192, 4
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table: `values` of the rounds, of which the median counts."""

    name: str
    values: list[float]
    target: float | None
    unit: str
    at_least: bool = False

    @property
    def median(self) -> float:
        """What is compared with the target."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median keeps the target, if there is one."""
        target = self.median if self.target is None else self.target
        return self.median >= target if self.at_least else self.median <= target


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """The median time of `call` in seconds."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _spawned(rank: int, folder: str) -> None:
    """What torch.multiprocessing.spawn runs: meet, and one all-reduce."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=4)
    dist.all_reduce(torch.ones(1))
    dist.barrier()  # gloo aborts a process whose peer has left already
    dist.destroy_process_group()


def _launched(mesh: mm.Mesh) -> None:
    mm.all_reduce(torch.ones(1), mesh.tp)


def launching() -> Iterator[Row]:
    """Starting four ranks: the first call with the import, later calls, and spawn."""
    script = (
        "import time; t = time.perf_counter(); import minimegatron as mm\n"
        "mm.launch(lambda mesh: None, tp=4); print(time.perf_counter() - t)"
    )
    first = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True).stdout)
        for _ in range(3)
    ]
    yield Row("launch on 4 ranks: first call, import included", first, 3.0, "s")
    mm.launch(_launched, tp=4)
    later = [1e3 * seconds(lambda: mm.launch(_launched, tp=4)) for _ in range(40)]
    yield Row("launch on 4 ranks: later calls", later, 15.0, "ms")
    ratios = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            spawn = seconds(lambda f=folder: torch.multiprocessing.spawn(_spawned, (f,), 4))  # type: ignore[misc]
        ratios.append(spawn / seconds(lambda: mm.launch(_launched, tp=4), 9))
    yield Row("torch.multiprocessing.spawn / launch, 4 ranks", ratios, 200, "x", at_least=True)


def failing() -> Iterator[Row]:
    """From the call to the error in the notebook, while the other ranks wait."""

    def fail(mesh: mm.Mesh) -> None:
        if mesh.rank == 1:
            raise ValueError("on purpose")
        mm.barrier(mesh.tp)

    def once() -> None:
        try:
            mm.launch(fail, tp=4)
        except mm.RankError:
            return

    times = []
    for _ in range(ROUNDS):
        mm.launch(_launched, tp=4)
        times.append(seconds(once))
    yield Row("a rank raises: error in the notebook, 4 ranks", times, 1.0, "s")


def reducing() -> Iterator[Row]:
    """A small all-reduce against gloo's own, in turns on the same ranks."""

    def race(mesh: mm.Mesh, elements: int) -> list[float]:
        x, ratios = torch.ones(elements), []
        for _ in range(9):
            ours = seconds(lambda: mm.all_reduce(x, mesh.tp), 9)
            ratios.append(ours / seconds(lambda: dist.all_reduce(x.clone()), 9))
        return ratios

    for size in (64, 64 << 10):
        ratios = mm.launch(race, size // 4, tp=4)[0]
        yield Row(f"all-reduce of {size:,} bytes, 4 ranks / gloo's own", ratios, 0.25, "x")


def _batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (BATCH, CONFIG["seq_length"] + 1)
    tokens = torch.randint(VOCABULARY, shape, generator=draw)
    return tokens[:, :-1], tokens[:, 1:].contiguous()


def _stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One whole training step: forward, backward, AdamW."""
    optimizer = make_optimizer(model)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    step()
    return step


def _ours(mesh: mm.Mesh | None = None) -> Callable[[], None]:
    model = mm.GPT(mm.GPTConfig(VOCABULARY, **CONFIG), mesh)
    tokens, targets = _batch()
    return _stepper(model, lambda: model.loss(tokens, targets))


def stepping() -> Iterator[Row]:
    """Tensor parallelism of two ranks against one process that has both cores."""
    torch.set_num_threads(2)
    alone = _ours()

    def on_ranks(mesh: mm.Mesh) -> float:
        return seconds(_ours(mesh), 3)

    ratios = []
    for _ in range(ROUNDS):
        before = seconds(alone, 3)
        ranks = max(mm.launch(on_ranks, tp=2))
        ratios.append(ranks / statistics.mean([before, seconds(alone, 3)]))
    yield Row("GPT step, tp=2 / one process with 2 threads", ratios, 1.05, "x")


class _PlainLayer(nn.Module):
    """A pre-LN layer of torch.nn's own parts, for DTensor to split."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q, self.k, self.v, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.head_size = hidden // heads

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        # However many heads this rank has: -1.
        q, k, v = (
            part(y).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden = CONFIG["hidden_size"]
        self.word, self.position = nn.Embedding(VOCABULARY, hidden), nn.Embedding(256, hidden)
        layers = [_PlainLayer(hidden, CONFIG["num_heads"]) for _ in range(CONFIG["num_layers"])]
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.word(tokens) + self.position.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.layers(x)))
        return logits


def _dtensor() -> Callable[[], None]:
    """The same step, split by torch's DTensor: parallelize_module and loss_parallel."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        loss_parallel,
        parallelize_module,
    )

    model, tokens, targets = _Plain(), *_batch()
    mesh = dist.init_device_mesh("cpu", (2,))
    plan: dict[str, Any] = {
        "word": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }
    for number in range(CONFIG["num_layers"]):
        plan |= {f"layers.{number}.{name}": ColwiseParallel() for name in ("q", "k", "v", "up")}
        plan |= {f"layers.{number}.{name}": RowwiseParallel() for name in ("out", "down")}
    parallelize_module(model, mesh, plan)
    optimizers = [  # one for each kind: AdamW cannot mix them
        torch.optim.AdamW([p for p in model.parameters() if isinstance(p, DTensor) is kind])
        for kind in (True, False)
    ]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with loss_parallel():
            F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    return step


def against_dtensor() -> Iterator[Row]:
    """The same step and split by torch's own tensor parallelism, in turns on the same ranks."""

    def race(mesh: mm.Mesh) -> list[float]:
        ours, theirs = _ours(mesh), _dtensor()
        return [seconds(ours) / seconds(theirs) for _ in range(ROUNDS)]

    ratios = mm.launch(race, tp=2, timeout=300)[0]
    yield Row("GPT step, tp=2 / DTensor's parallelize_module", ratios, 0.65, "x")


def against_transformers() -> Iterator[Row]:
    """The same step of transformers' GPT-2, in turns in this process."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return
    torch.set_num_threads(2)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=256, n_embd=CONFIG["hidden_size"],
            n_layer=CONFIG["num_layers"], n_head=CONFIG["num_heads"], resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    tokens, targets = _batch()

    def loss() -> Tensor:
        return F.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets.flatten())

    ours, their_step = _ours(), _stepper(theirs, loss)
    ratios = [seconds(ours) / seconds(their_step) for _ in range(2 * ROUNDS)]
    yield Row("GPT step, one process / transformers' GPT2LMHeadModel", ratios, 1.0, "x")


# Larger than the table of `minimegatron features`: products, not calls, should take the time.
FEATURE_SIZES = {"hidden_size": 256, "num_layers": 4, "seq_length": 128, "vocab_size": 2048}


def features() -> Iterator[Row]:
    """A step with each feature against one without it, on the same split, in turns."""
    from minimegatron.cli.features import FEATURES, SLOW, time_ratios
    from minimegatron.cli.steps import compare

    for one in FEATURES:
        sizes = FEATURE_SIZES | SLOW.get(one.precision, {})
        sides = mm.launch(compare, one, sizes, 7, tp=one.tp, dp=one.dp, timeout=300)[0]
        name = f"GPT step, {one.split}, {one.part[2:]}: {one.name}"
        yield Row(name, time_ratios(sides), None, "x")


def pipelining() -> Iterator[Row]:
    """Two stages on two cores against one process, and what of it the bubble explains."""
    from minimegatron.cli.pipelining import rows

    yield from rows()


PARTS = {
    part.__name__: part for part in (
        launching, failing, reducing, stepping, against_dtensor, against_transformers, features,
        pipelining,
    )
}  # fmt: skip


def run(names: list[str] | None = None) -> int:
    """Measure the rows of these parts (None: of all) and print the table.

    0, whatever it shows; 1 for a name that is no part.
    """
    console = Console()
    if unknown := [name for name in names or () if name not in PARTS]:
        console.print(f"error: {unknown[0]!r} is not one of {', '.join(PARTS)}", markup=False)
        return 1
    table = Table(title="Medians of paired rounds", title_justify="left")
    table.add_column("what")
    for column in ("median", "least", "most", "target"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for part in [PARTS[name] for name in names or PARTS]:
        with console.status((part.__doc__ or "").splitlines()[0]):
            rows = list(part())
        for row in rows:
            limit, met = "", ""
            if row.target is not None:
                limit = f"{'>=' if row.at_least else '<='} {row.target:g} {row.unit}"
                met = "yes" if row.met else "no"
            values = row.median, min(row.values), max(row.values)
            numbers = [f"{value:.3g} {row.unit}" for value in values]
            table.add_row(row.name, *numbers, limit, met)
    console.print(table)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads in one process")
    return 0
