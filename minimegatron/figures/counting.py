"""A GPT counted before it runs: parameters, FLOPs and bytes, and which part of each is what.

Narayanan et al., arXiv:2104.04473, section 5.1, for the first two; for the bytes "ZeRO",
arXiv:1910.02054, section 3, and Korthikanti et al., arXiv:2205.05198, section 4. Three bars have
three units, so each is drawn at full length: what can be compared is how it is cut. The key is each
term's share, in words.
"""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets

from minimegatron.analysis.activations import activation_bytes
from minimegatron.analysis.flops import flops_per_token, parameter_count
from minimegatron.analysis.memory import state_bytes
from minimegatron.figures.bars import LOOKS
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import SMALL, canvas, patch, words
from minimegatron.figures.widgets import PictureExplorer
from minimegatron.models.config import GPTConfig

LEFT, RIGHT, BAR, ROW, LETTER = 170, 880, 36, 96, 9.6  # pixels
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def model_costs(
    hidden: int = 1536, layers: int = 40, seq: int = 1024, vocab: int = 51200
) -> Picture:
    """Parameters, FLOPs a token (forward and backward) and bytes of training in bf16, by term.

    The bytes are those of one sequence on one rank, with a fused attention kernel, no dropout and
    nothing recomputed; a head has 64 columns.
    """
    config = GPTConfig(vocab, seq, hidden, layers, max(1, hidden // 64))
    words_, positions, total = vocab * hidden, seq * hidden, parameter_count(config)
    states = state_bytes("bf16", total)
    held = {
        "weights": states["parameters"], "gradients": states["gradients"],
        "Adam": states["optimizer"], "activations": activation_bytes(config, batch=1),
    }  # fmt: skip
    head, scores = 6 * vocab * hidden, 12 * layers * seq * hidden
    rows: dict[str, tuple[str, Mapping[str, float]]] = {
        "parameters": (
            short(total).replace("G", "B"),
            {"layers": total - words_ - positions, "words": words_, "positions": positions},
        ),
        "FLOPs a token": (
            short(flops_per_token(config)),
            {"matrices": flops_per_token(config) - head - scores, "scores": scores, "head": head},
        ),
        "bytes, bf16": (short(sum(held.values())) + "B", held),
    }
    title = f"h = {hidden:,}, L = {layers}, s = {seq:,}, V = {vocab:,}"
    with canvas(900, 50 + ROW * len(rows)) as axes:
        words(axes, 20, 26, title, align="left", bold=True)
        for i, (name, (whole, terms)) in enumerate(rows.items()):
            top, x = 56 + ROW * i, float(LEFT)
            words(axes, 20, top + 8, name, align="left", size=SMALL)
            words(axes, 20, top + 30, whole, align="left", bold=True)
            at = float(LEFT)
            for (term, share), (colour, hatch) in zip(shares(terms).items(), LOOKS, strict=False):
                patch(axes, x, top, (RIGHT - LEFT) * share, BAR, colour=colour, hatch=hatch)
                x += (RIGHT - LEFT) * share
                label = f"{term} {share:.1%}"
                patch(axes, at, top + BAR + 10, 24, 16, colour=colour, hatch=hatch)
                words(axes, at + 32, top + BAR + 18, label, align="left", size=SMALL)
                at += 32 + LETTER * len(label) + 12
        told = "; ".join(
            f"{name} {whole}: {', '.join(f'{t} {s:.1%}' for t, s in shares(terms).items())}"
            for name, (whole, terms) in rows.items()
        )
        return Picture(axes, f"A GPT with {title}, three bars cut into shares. {told}.")


def shares(terms: Mapping[str, float]) -> dict[str, float]:
    """Each term as a part of their sum."""
    total = sum(terms.values())
    return {term: value / total for term, value in terms.items()}


def short(value: float) -> str:
    """Three digits and a unit: 1213456789 -> "1.21 G"."""
    scale, unit = next((each for each in UNITS if value >= 0.9995 * each[0]), (1, ""))
    return f"{float(f'{value / scale:.3g}'):g} {unit}"


def explore_model() -> PictureExplorer:
    """Sliders for hidden size, layers, sequence and vocabulary above `model_costs`."""
    options = {
        "hidden": (256, 768, 1024, 1536, 1920, 2304, 3072, 4096, 6144, 12288, 20480, 25600),
        "layers": (1, 2, 4, 12, 24, 40, 54, 64, 72, 96, 105, 128),
        "seq": (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072),
        "vocab": (256, 8192, 30522, 51200, 128256, 256000),
    }
    first = {"hidden": 1536, "layers": 40, "seq": 1024, "vocab": 51200}
    return PictureExplorer(
        model_costs,
        **{
            name: ipywidgets.SelectionSlider(options=values, value=first[name], description=name)
            for name, values in options.items()
        },
    )
