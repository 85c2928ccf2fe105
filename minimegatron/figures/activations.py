"""What forward keeps for backward, as bars: Korthikanti et al., arXiv:2205.05198, section 4.

The terms of `analysis/activations.py` in six groups. The paper's way to save is one row each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ipywidgets

from minimegatron.analysis.activations import Term, activation_terms, outside_terms
from minimegatron.figures.bars import stacked_bars
from minimegatron.figures.picture import Picture
from minimegatron.figures.widgets import PictureExplorer
from minimegatron.models.config import GPTConfig

WAYS: dict[str, dict[str, bool | str]] = {
    "tp": {},
    "+ sequence": {"sequence_parallel": True},
    "+ selective": {"recompute": "selective"},
    "+ both": {"sequence_parallel": True, "recompute": "selective"},
    "full": {"recompute": "full"},
}


def _group(term: Term) -> str:
    if "as" in term.formula:
        return "scores"
    if term.what == "the layer's input":
        return "layers' inputs"
    if term.place.startswith("ln"):
        return "layer norms"
    return "MLP" if term.place.startswith("mlp") or "MLP" in term.what else "attention"


def activation_bars(
    title: str,
    rows: Mapping[str, tuple[GPTConfig, int]],
    batch: int,
    unit: tuple[str, float] = ("kB", 1e3),
    measured: Mapping[str, float] | None = None,
    limit: tuple[str, float] | None = None,
) -> Picture:
    """Bytes of activations on a rank, on `batch` sequences, one bar a row, by group of terms.

    Args:
        rows: label -> the model and its tp.
        unit: a name and its bytes.
        measured: label -> bytes, marked below the bar.
        limit: a label and bytes, drawn as a dashed line.
    """
    groups = ("scores", "attention", "MLP", "layer norms", "layers' inputs", "outside")
    bars = {}
    for label, (config, tp) in rows.items():
        parts = dict.fromkeys(groups, 0.0)
        for term in activation_terms(config, batch, tp):
            parts[_group(term)] += config.num_layers * term.bytes / unit[1]
        outside = sum(term.bytes for term in outside_terms(config, batch, tp))
        bars[label] = parts | {"outside": outside / unit[1]}
    used = [name for name in groups if any(parts[name] for parts in bars.values())]
    bars = {label: {name: parts[name] for name in used} for label, parts in bars.items()}
    marks = {label: value / unit[1] for label, value in (measured or {}).items()}
    return stacked_bars(
        title, unit[0], bars, marks, None if limit is None else (limit[0], limit[1] / unit[1])
    )


def ways_to_save(seq: int = 2048, tp: int = 8, attention: str = "2022") -> Picture:
    """The paper's 22B model, 4 sequences of `seq` tokens, in each of the ways to save.

    `attention` "2022" has dropout and writes the scores down; "today" has neither.
    """
    then = {"dropout": 0.1, "attention": "explicit"} if attention == "2022" else {}
    config = GPTConfig(51200, seq, 6144, 48, 64, **then)  # type: ignore[arg-type]
    rows = {name: (dataclasses.replace(config, **way), tp) for name, way in WAYS.items()}  # type: ignore[arg-type]
    title = f"Activations of the 22B model, 4 x {seq:,} tokens, tp = {tp}"
    return activation_bars(title, rows, 4, ("GB", 1e9), limit=("one A100", 80e9))


def explore_activations() -> PictureExplorer:
    """Sliders for the sequence, tp and the attention above `ways_to_save`."""
    return PictureExplorer(
        ways_to_save,
        seq=ipywidgets.SelectionSlider(
            options=(512, 1024, 2048, 4096, 8192, 16384, 32768), value=2048, description="seq"
        ),
        tp=ipywidgets.SelectionSlider(options=(1, 2, 4, 8, 16, 32), value=8, description="tp"),
        attention=ipywidgets.SelectionSlider(
            options=("2022", "today"), value="2022", description="attention"
        ),
    )
