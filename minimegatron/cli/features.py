"""`minimegatron features`: what each feature of "Fit and speed" is worth, in one table.

A row a feature: how equal it is to one process in float64 (or the band of its precision), and,
against the same split without it, the bytes on the wire, the bytes saved for backward, the bytes
owned between steps, and the time of a step. The list of what does not go together is here, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from minimegatron.analysis.flops import flops_per_token, parameter_count
from minimegatron.analysis.traffic import tensor_parallel_traffic
from minimegatron.cli.bench import seconds
from minimegatron.cli.steps import BATCH, SIZES, Feature, Measured, Trainer, compare
from minimegatron.cli.train import Settings
from minimegatron.data_parallel.compression import Compression
from minimegatron.data_parallel.gradients import accumulate_gradients, finish_gradients
from minimegatron.figures.tables import PUBLISHED, published_table
from minimegatron.models.config import GPTConfig
from minimegatron.models.fusion import bias_gelu, causal_softmax, fused
from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.launch import launch
from minimegatron.ranks.ledger import ledger
from minimegatron.ranks.mesh import Mesh, single
from minimegatron.tensor_parallel.linear import RowParallelLinear
from minimegatron.training.parity import parity

Row = tuple[str, ...]

SMALL = GPTConfig(vocab_size=29, seq_length=8, hidden_size=16, num_layers=2, num_heads=4)
DROPPED = {"attention": "explicit", "dropout": 0.1}  # scores and masks are among what is saved


class TwoChunks(RowParallelLinear):
    """Its all-reduce of one half of the tokens under the product of the other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "chunks": 2})


FEATURES = (
    Feature("2 precision", "bf16", tp=2, precision="bf16"),
    Feature("2 precision", "fp16", tp=2, precision="fp16"),
    Feature("3 recompute", "full", tp=2, base=DROPPED, config={"recompute": "full"}),
    Feature("3 recompute", "selective", tp=2, base=DROPPED, config={"recompute": "selective"}),
    Feature(
        "4 sequence", "gathered again", tp=2, base=DROPPED, config={"sequence_parallel": True}
    ),
    Feature(
        "4 sequence", "gathered, kept", tp=2, base=DROPPED,
        config={"sequence_parallel": True, "keep_gathered": True},
    ),
    *(Feature("5 ZeRO", f"stage {stage}", dp=2, zero=stage) for stage in (1, 2, 3)),
    Feature("6 overlap", "row layer in 2 chunks", tp=2, using={"RowParallelLinear": TwoChunks}),
    Feature("7 gradients", "2 nodes of 2 ranks", dp=4, ranks_per_node=2),
    *(
        Feature("7 gradients", method, dp=2, compress={"method": method})
        for method in ("fp16", "bf16", "top-k", "1-bit", "powersgd")
    ),
)  # fmt: skip
SLOW = {"fp16": {"hidden_size": 32, "seq_length": 16}}  # its products, on a CPU, forty times


@dataclass(frozen=True)
class Clash:
    """Two choices that do not go together, why, and a call that must say so."""

    first: str
    second: str
    why: str
    attempt: Callable[[], object]


def _clash(first: str, second: str, why: str, **options: Any) -> Clash:
    return Clash(first, second, why, lambda: parity(SMALL, **options))


INCOMPATIBLE = (
    _clash("zero=2", "pp > 1", "gradients would be reduced for every micro-batch", zero=2, pp=2),
    _clash("zero=3", "pp > 1", "parameters would be gathered for every micro-batch", zero=3, pp=2),
    Clash(
        "zero", "compress", "a rank receives its own part of the sum only",
        Settings(zero=1, compress="1-bit").check,
    ),
    _clash(
        "sequence_parallel", "a sequence that tp does not divide", "ranks hold equal parts of it",
        tp=2, sequence_parallel=True, seq_length=7,
    ),
    _clash(
        "keep_gathered", "no sequence_parallel", "nothing is gathered", tp=2, keep_gathered=True
    ),
    Clash(
        "chunks > 1", "sequence_parallel", "each rank keeps its own part of one sum",
        lambda: RowParallelLinear(4, 4, single().tp, sequence_parallel=True, chunks=2),
    ),
    _clash(
        "dropout that parity judges", 'attention="sdpa"', "the kernel keeps its masks to itself",
        tp=2, dropout=0.1,
    ),
)  # fmt: skip


def evidence(feature: Feature) -> str:
    """How equal the feature is to what it replaces, with its band or what it is measured in."""
    if feature.compress or feature.ranks_per_node:
        off, crosses = launch(_lost, feature, tp=feature.tp, dp=feature.dp)[0]
        return f"{off:.0e} lost" if feature.compress else f"{off:.0e} off, {crosses:.2f} across"
    how = {"zero": feature.zero, "using": feature.using or None, **feature.base, **feature.config}
    dtype = {"fp32": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
    report = parity(SMALL, feature.tp, feature.dp, dtype=dtype[feature.precision], **how)
    kind = max(report.errors, key=lambda k: report.errors[k] / (report.band(k) or 1))
    sign = "<=" if report.ok else "NOT <="
    return f"{report.errors[kind]:.0e} {sign} {report.band(kind):.0e}"


def _lost(mesh: Mesh, feature: Feature) -> tuple[float, float]:
    """All that was sent and all that was kept for later, against the gradient of float64.

    The largest difference, in units of the largest gradient; and the part of a ring's bytes that
    crosses from node to node.
    """
    torch.set_default_dtype(torch.float64)
    gradients, logs = [], []
    for side in (feature, feature.absent):
        trainer = Trainer(mesh, side, {"hidden_size": 32, "vocab_size": 64})
        with ledger() as log:
            accumulate_gradients(trainer.model, trainer.batch)
            finish_gradients(trainer.model)
        logs.append(log)
        reducer = trainer.model.gradient_reducer
        kept = reducer.residual if isinstance(reducer, Compression) else {}
        gradients.append(
            torch.cat([
                (p.grad if p not in kept else p.grad + all_reduce(kept[p], mesh.dp)).flatten()
                for p in trainer.model.parameters() if p.grad is not None
            ])
        )  # fmt: skip
    found, wanted = gradients
    crosses = logs[0].wire_bytes(axis="dp.across") / logs[1].wire_bytes()
    return float((found - wanted).abs().max() / wanted.abs().max()), crosses


def _counts() -> list[Row]:
    """Part 1: formulas beside what models, torch's FLOP counter and ledgers count."""
    config = GPTConfig(**SIZES, attention="explicit")
    model = GPT(config)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = torch.zeros(1, config.seq_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).backward()
    flops = counter.get_total_flops() / config.seq_length

    def traffic(mesh: Mesh) -> float:
        trainer = Trainer(mesh, Feature("1 counting", "", tp=2), {})
        with ledger() as log:
            accumulate_gradients(trainer.model, trainer.batch)
        return log.wire_bytes(axis="tp")

    expected = tensor_parallel_traffic(GPTConfig(**SIZES), BATCH, tp=2)
    wire = sum(sent.wire_bytes for sent in expected)
    cells = [cell for name in PUBLISHED for cell in published_table(name).cells]
    missed = sum(cell.verdict == "not reproduced" for cell in cells)
    pairs = {
        "parameters": (parameters, parameter_count(config)),
        "FLOPs a token": (flops, flops_per_token(config)),
        "bytes of tp a step": (launch(traffic, tp=2)[0], wire),
        "published figures": (len(cells) - missed, len(cells)),
    }
    return [
        ("1 counting", name, f"{found:,.0f} of {formula:,.0f}", "", "", "", "")
        for name, (found, formula) in pairs.items()
    ]


def _fusion() -> list[Row]:
    """Two fused functions against themselves unfused, in this process."""
    draw = torch.Generator().manual_seed(0)
    x, bias = torch.randn(1024, 1024, generator=draw), torch.randn(1024, generator=draw)
    scores = torch.randn(4, 8, 128, 128, generator=draw)
    rows: list[Row] = []
    for name, function, inputs in (
        ("bias-GeLU in one kernel", bias_gelu, (x, bias)),
        ("causal softmax in one kernel", causal_softmax, (scores, 0.1)),
    ):
        one = fused(function)
        off = float((one(*inputs) - function(*inputs)).abs().max())
        ratios = [
            seconds(lambda: one(*inputs), 5) / seconds(lambda: function(*inputs), 5)  # noqa: B023
            for _ in range(5)
        ]
        rows.append(("6 fusion", name, f"{off:.0e} off", "", "", "", _times(ratios)))
    return rows


def _times(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}"


def time_ratios(sides: tuple[Measured, Measured]) -> list[float]:
    """With over without, round by round."""
    return [a / b for a, b in zip(sides[0].seconds, sides[1].seconds, strict=True)]


def _row(feature: Feature) -> Row:
    sizes = SLOW.get(feature.precision, {})
    one, other = launch(compare, feature, sizes, tp=feature.tp, dp=feature.dp, timeout=300)[0]
    split = f"tp={feature.tp}" if feature.tp > 1 else f"dp={feature.dp}"
    ratios = [f"{a / b:.2f}" for a, b in (
        (one.wire, other.wire), (one.saved, other.saved), (one.owned, other.owned)
    )]  # fmt: skip
    times = _times(time_ratios((one, other)))
    return (feature.part, f"{feature.name}, {split}", evidence(feature), *ratios, times)


def run() -> int:
    """Measures every feature, prints the table and what does not go together; 1 if not equal."""
    console = Console(highlight=False)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("part", "feature"):
        table.add_column(title)
    for title in ("parity", "wire", "saved", "owned", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    with console.status("formulas against counts"):
        rows = _counts()
    for feature in FEATURES:
        with console.status(f"{feature.part}, {feature.name}"):
            rows.append(_row(feature))
    with console.status("fusion"):
        rows += _fusion()
    for row in sorted(rows, key=lambda row: row[0]):
        table.add_row(*row)
    console.print(table)
    console.print(NOTES)
    console.print("What does not go together:", markup=False)
    for clash in INCOMPATIBLE:
        line = f"  {clash.first} with {clash.second}: {clash.why}"
        console.print(line, markup=False, soft_wrap=True)
    return int(any("NOT" in cell for row in rows for cell in row))


NOTES = """\
Parity: the worst relative difference from one process over 3 steps, and its
band; for gradients the difference from a plain float64 sum, "lost" being what
is neither sent nor kept for the next step, "across" the part of the bytes that
goes from node to node. The others: a rank with the feature against the same
split without it: bytes a ring sends in a step; bytes saved for backward; bytes
owned between steps (parameters, gradients, optimizer state); time of a step,
the median of paired rounds on this machine.
"""
