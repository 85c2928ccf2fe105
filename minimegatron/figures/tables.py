"""Each published table of the papers, computed anew by the course's formulas: a generator a table.

The formulas are in analysis/, the printed figures in analysis/published.json. Two rows are fits or
identities between printed figures, and say so: no formula gives a measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from minimegatron.analysis.activations import activation_terms
from minimegatron.analysis.flops import flops_per_token, hardware_flops_per_token, parameter_count
from minimegatron.analysis.memory import state_bytes
from minimegatron.analysis.published import figure, published
from minimegatron.analysis.run import training_days
from minimegatron.analysis.traffic import pipeline_message_bytes
from minimegatron.figures.published import Cell, PublishedTable
from minimegatron.models.config import GPTConfig

MEGATRON, NARAYANAN, KORTHIKANTI, ZERO = "1909.08053", "2104.04473", "2205.05198", "1910.02054"


def published_table(name: str) -> PublishedTable:
    """One of PUBLISHED, computed anew. Raises ValueError for a name that is not among them."""
    if name not in PUBLISHED:
        raise ValueError(f"{name!r} is not one of {', '.join(PUBLISHED)}")
    title, cells, remark = PUBLISHED[name]
    return PublishedTable(f"{name}: {title}", list(cells()), remark)


def _config(table: dict[str, Any], row: dict[str, Any], **options: Any) -> GPTConfig:
    sizes = (row["hidden"], row["layers"], row["heads"])
    return GPTConfig(table["vocab"], table["seq"], *sizes, **options)


def _ratio(row: str, what: str, printed: str, over: str, under: str) -> Cell:
    """100 (over / under - 1) of two printed figures, with what their rounding allows."""
    (a, da), (b, db) = figure(over), figure(under)
    return Cell(row, what, printed, 100 * (a / b - 1), 100 * a / b * (da / a + db / b))


def _megatron_1() -> Iterator[Cell]:
    table = published(MEGATRON, "table 1")
    for row in table["rows"]:
        name, width = f"{row['params_b']}B", row["hidden"] / row["heads"]
        yield Cell(name, "parameters", name, parameter_count(_config(table, row)))
        yield Cell(name, "hidden size per head", table["hidden_per_head"], width)
        yield Cell(name, "GPUs with 64-way dp", row["mpdp_gpus"], 64 * row["mp_gpus"])


def _megatron_2() -> Iterator[Cell]:
    table = published(MEGATRON, "table 2")
    for row in table["rows"]:
        name, width = row["params"], row["hidden"] / row["heads"]
        yield Cell(name, "parameters", name, parameter_count(_config(table, row)))
        yield Cell(name, "hidden size per head", row["head_dim"], width)


def _megatron_5() -> Iterator[Cell]:
    whole, bars = published(MEGATRON, "abstract"), published(MEGATRON, "figure 5")
    (alone, _), (all_gpus, spread) = figure(whole["tflops"]), figure(whole["petaflops"])
    scaling = 1e5 * all_gpus / whole["gpus"] / alone
    moved = scaling * (spread / all_gpus + 0.5 / alone)
    yield Cell("1 GPU", "% of peak", whole["pct_peak"], 100 * alone / whole["peak_tflops"])
    yield Cell("512 GPUs", "scaling, abstract", whole["scaling_pct"], scaling)
    bar = bars["model_data_parallel"]
    yield Cell("512 GPUs", "scaling, figure", bar["512"], scaling, moved, "the paper has both")
    heads = published(MEGATRON, "table 7")["eff_pct"]["32"]
    yield Cell("tp=8", "scaling, table 7", bars["model_parallel"]["8"], figure(heads)[0])
    for tp, gpus in (("2", "128"), ("4", "256"), ("8", "512")):
        a, b = figure(bars["model_parallel"][tp])[0], figure(bar["64"])[0]
        yield Cell(f"tp={tp}, dp=64", "tp alone x dp alone", bar[gpus], a * b / 100, (a + b) / 200)


def _megatron_8() -> Iterator[Cell]:
    speedup = published(MEGATRON, "table 8")["speedup"]
    lost = (1 / figure(speedup["8"])[0] - 1 / 8) / (1 - 1 / 8)
    for n in ("1", "2", "4"):
        fit = 1 / (1 / int(n) + lost * (1 - 1 / int(n)))
        yield Cell(f"tp={n}", "speedup", speedup[n], fit)


def _narayanan_1() -> Iterator[Cell]:
    table = published(NARAYANAN, "table 1")
    for row in table["rows"]:
        name, (tflops, half) = f"{row['params_b']}B", figure(row["tflops"])
        share, gpus = 100 / table["peak_tflops"], row["gpus"] / 1000
        yield Cell(name, "parameters", name, parameter_count(_config(table, row)))
        yield Cell(name, "% of peak (HFU)", row["pct_peak"], tflops * share, half * share)
        yield Cell(name, "PFLOP/s in all", row["agg_pflops"], tflops * gpus, half * gpus)


def _narayanan_text() -> Iterator[Cell]:
    text, example = published(NARAYANAN, "text"), published("docs", "gpt3 example")
    for name, run in (("GPT-3", text["gpt3"]), ("1T", text["trillion"])):
        days = training_days(run["P"], run["T"], run["n"], run["X"])
        yield Cell(name, "days, 8TP/(nX)", run["days"], days)
    for name, (before, after, gain) in (("175B", text["fused_175b"]), ("530B", text["fused_530b"])):
        yield _ratio(name, "% gained by fusion", gain, after, before)
    full = _config(example, example, recompute="full")
    again = hardware_flops_per_token(full) / flops_per_token(full) - 1
    yield Cell("GPT-3", "% more FLOPs, recompute", text["recompute_slowdown_pct"], 100 * again)
    terabytes = 14 * text["trillion"]["P"] / 1e12
    yield Cell("1T", "checkpoint, TB", text["checkpoint_tb"], terabytes, 0,
               "14 bytes a parameter; 13.8 if 1024 GB are a TB")  # fmt: skip
    seconds, half = figure(example["iter_s"])
    tokens = example["batch"] * example["seq"] / seconds / example["gpus"]
    tflops = hardware_flops_per_token(full) * tokens / 1e12
    hfu = 100 * tflops / example["peak_tflops"]
    yield Cell("README", "TFLOP/s a GPU", example["tflops"], tflops, tflops * half / seconds)
    yield Cell("README", "% of peak (HFU)", example["pct"], hfu, hfu * half / seconds)


def _korthikanti_3() -> Iterator[Cell]:
    table = published(KORTHIKANTI, "table 3")
    for name, row in table["rows"].items():
        yield Cell(name, "parameters", name, parameter_count(_config(table, row)))
        yield Cell(name, "GPUs, tp x pp", row["gpus"], row["tp"] * row["pp"])


def _korthikanti_flops() -> Iterator[Cell]:
    table = published(KORTHIKANTI, "table 3")
    for name, row in table["rows"].items():
        config = _config(table, row, recompute="selective")
        s, h, layers, v = table["seq"], row["hidden"], row["layers"], table["vocab"]
        head, unit = v / (12 * h * layers), 72 * layers * h * h
        model, hardware = 1 + s / (6 * h) + head, 1 + s / (3 * h) + head
        yield Cell(name, "model", f"{model:.4f}", flops_per_token(config) / unit)
        found = hardware_flops_per_token(config) / unit
        yield Cell(name, "hardware", f"{hardware:.4f}", found, 0, "2/9, not 1/3")


def _korthikanti_memory() -> Iterator[Cell]:
    table = published(KORTHIKANTI, "table 3")
    for name, row in table["rows"].items():
        s, b, h, t = table["seq"], row["mbs"], row["hidden"], row["tp"]
        scores = 5 * row["heads"] * s / h
        formulas: dict[tuple[int, bool, str | None], float] = {
            (1, False, None): 34 + scores,
            (t, False, None): 10 + 24 / t + scores / t,
            (t, True, None): (34 + scores) / t,
            (t, False, "selective"): 10 + 24 / t,
            (t, True, "selective"): 34 / t,
            (1, False, "full"): 2,
        }
        for (tp, split, again), sbh in formulas.items():
            options = {"sequence_parallel": split, "recompute": again}
            config = _config(table, row, attention="explicit", dropout=0.1, **options)
            found = sum(term.bytes for term in activation_terms(config, b, tp)) / (s * b * h)
            what = f"tp={tp}{', sequence' if split else ''}{f', {again}' if again else ''}"
            yield Cell(name, what, f"{sbh:.4f}", found)
        if name == "530B":
            printed = published(KORTHIKANTI, "text")["530B output tensors, GiB"]
            size = row["pp"] * pipeline_message_bytes(config, b) / 2**30
            yield Cell(name, "a stage's p outputs, GiB", printed, size)


def _korthikanti_4() -> Iterator[Cell]:
    rows = published(KORTHIKANTI, "table 4")["rows"]
    base = rows["Baseline no recompute"][2]
    for name, (forward, backward, combined, overhead) in rows.items():
        both = figure(forward)[0] + figure(backward)[0]
        yield Cell(name, "forward + backward, ms", combined, both, 0.1)
        if overhead:
            yield _ratio(name, "% over the baseline", overhead, combined, base)


def _zero_1() -> Iterator[Cell]:
    table = published(ZERO, "table 1")
    psi = figure(table["psi_b"])[0]
    for stage, name in enumerate(("os", "os_g", "os_g_p"), 1):
        for dp, printed in zip(table["nd"], table[name], strict=True):
            size = sum(state_bytes("ZeRO's fp16", psi, dp, stage).values())
            yield Cell(f"ZeRO-{stage}, dp={dp}", "GB a rank", printed, size)


def _zero_figure() -> Iterator[Cell]:
    table = published(ZERO, "figure 1")
    psi = figure(table["psi_b"])[0]
    for stage, (name, printed) in enumerate(table["gb"].items()):
        size = sum(state_bytes("ZeRO's fp16", psi, table["nd"], stage).values())
        yield Cell(name, "GB a rank", printed, size)


def _zero_text() -> Iterator[Cell]:
    table = published(ZERO, "gpt-2")
    states = state_bytes("ZeRO's fp16", figure(table["psi_b"])[0])
    layer = table["batch"] * table["seq"] * table["hidden"] / 1e9  # elements of one activation
    kept = layer * (2 * table["layers"] + 2 * 12)
    yield Cell("1.5B", "parameters, GB", table["params_gb"], states["parameters"])
    yield Cell("1.5B", "model states, GB", table["states_gb"], sum(states.values()))
    activations = 2 * 12 * layer * table["layers"]
    yield Cell("1.5B", "activations, GB", table["activations_gb"], activations)
    yield Cell("1.5B", "with checkpoints, GB", table["with_ckpt_gb"], kept, 0,
               "every layer's input and one layer's activations")  # fmt: skip


def _documentation() -> Iterator[Cell]:
    for name, (plain, split) in published("docs", "distributed optimizer").items():
        precision = name.partition("_")[0]
        whole, part = (float(number) for number in split.removesuffix("/d").split("+"))
        yield Cell(name, "bytes a parameter", plain, sum(state_bytes(precision).values()))
        for dp in (2, 8, 64):
            size = sum(state_bytes(precision, 1, dp, 1).values())
            yield Cell(name, f"{split}, d={dp}", f"{whole + part / dp:.4f}", size)


PUBLISHED: dict[str, tuple[str, Callable[[], Iterator[Cell]], str]] = {
    "Megatron-LM table 1": ("scaling, arXiv:1909.08053", _megatron_1, ""),
    "Megatron-LM table 2": (
        "GPT-2, arXiv:1909.08053", _megatron_2,
        "Counted with GPT-2's own 50,257 tokens: with the padded 51,200 of the paper's runs the "
        "smallest has 356M.",
    ),
    "Megatron-LM figure 5": (
        "weak scaling, arXiv:1909.08053", _megatron_5,
        "Identities between printed figures: the paper prints no iteration times.",
    ),
    "Megatron-LM table 8": (
        "strong scaling, arXiv:1909.08053", _megatron_8,
        "A fit, not a formula: a step takes 1/n + c (1 - 1/n), with c read off the 8 GPUs.",
    ),
    "Narayanan table 1": (
        "weak scaling to 1T, arXiv:2104.04473", _narayanan_1,
        "% of peak counts the recomputed forward: the MFU of these runs is lower.",
    ),
    "Narayanan text": ("claims of arXiv:2104.04473 and the README", _narayanan_text, ""),
    "Korthikanti table 3": ("configurations, arXiv:2205.05198", _korthikanti_3, ""),
    "Korthikanti FLOPs": (
        "model and hardware FLOPs over 72BLsh^2, arXiv:2205.05198", _korthikanti_flops,
        "Selective recomputation runs 4Bs^2h again, so s/3h should be 2s/9h: an author of the "
        "paper agrees (NVIDIA/Megatron-LM#523).",
    ),
    "Korthikanti memory": (
        "activations of a layer over sbh, arXiv:2205.05198", _korthikanti_memory,
        "The paper's formulas, at the sizes of its table 3, beside the sum of our terms.",
    ),
    "Korthikanti table 4": (
        "a layer of 22B, arXiv:2205.05198", _korthikanti_4,
        "Sums and ratios of measured milliseconds.",
    ),
    "ZeRO table 1": ("model states of 7.5B, arXiv:1910.02054", _zero_1, "GB are 10^9 bytes."),
    "ZeRO figure 1": ("model states of 7.5B, dp=64, arXiv:1910.02054", _zero_figure, ""),
    "ZeRO text": ("GPT-2 of 1.5B, batch 32, arXiv:1910.02054", _zero_text, ""),
    "Megatron-LM documentation": ("distributed optimizer, d ranks of dp", _documentation, ""),
}  # fmt: skip
