"""What 16 bits can hold: the formats bit by bit, and where gradients fall on the line of fp16.

The lines are logarithmic, a step for each power of two. fp16 holds all its digits from 2^-14 to
65504, fewer and fewer down to 2^-24, then nothing but 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import ipywidgets
import torch
from torch import Tensor

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import EVERY_RANK, INK, PAPER, SMALL, canvas, patch, words
from minimegatron.figures.widgets import PictureExplorer

# (bits of the exponent, bits of the fraction); beside them one bit is the sign.
FORMATS = {
    torch.float32: (8, 23), torch.bfloat16: (8, 7), torch.float16: (5, 10),
    torch.float8_e5m2: (5, 2), torch.float8_e4m3fn: (4, 3),
}  # fmt: skip
BIT = 11  # pixels
GREY = "#8F8F8F"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# The line of fp16: in which powers of two a number loses what.
LOWEST, ZERO, FEWER, TOO_LARGE, HIGHEST = -44, -25, -14, 16, 26
REGIONS = (
    ("become 0", LOWEST, ZERO), ("lose digits", ZERO, FEWER),
    ("keep all digits", FEWER, TOO_LARGE), ("become inf", TOO_LARGE, HIGHEST),
)  # fmt: skip


def power(exponent: int) -> str:
    """2 to the `exponent`, as text."""
    return "2" + str(exponent).translate(SUPERSCRIPTS)


def number_formats(*dtypes: torch.dtype) -> Picture:
    """The bits of each format, to scale, and from which to which number it reaches.

    Raises ValueError for a dtype that is not one of FORMATS, or none.
    """
    unknown = [dtype for dtype in dtypes if dtype not in FORMATS]
    if unknown or not dtypes:
        raise ValueError(f"number_formats draws {', '.join(map(str, FORMATS))}, not {unknown}")
    left, start, end = 130, 500, 880
    scale = (end - start) / (128 + 150)  # pixels per power of two

    def across(exponent: float) -> float:
        return start + scale * (exponent + 150)

    spoken = []
    with canvas(900, 100 + 62 * len(dtypes)) as axes:
        words(axes, left, 28, "bits", align="left", bold=True)
        words(axes, start, 28, "holds numbers", align="left", bold=True)
        for row, dtype in enumerate(dtypes):
            (exponent, fraction), info = FORMATS[dtype], torch.finfo(dtype)
            name, top = str(dtype).removeprefix("torch.float"), 52 + 62 * row
            name = name.replace("torch.bfloat", "bf") if "bf" in name else f"fp{name}"
            name = name.replace("_", " ")
            words(axes, 20, top + 17, name, align="left")
            x = float(left)
            for bits, colour in ((1, GREY), (exponent, EVERY_RANK), (fraction, PAPER)):
                label = str(bits) if bits > 1 else ""
                patch(axes, x, top, BIT * bits, 34, label, colour=colour, size=SMALL)
                x += BIT * bits
            tiny, low, high = (
                torch.tensor(value, dtype=torch.float64).log2().item()
                for value in (info.tiny, info.smallest_normal * info.eps, info.max)
            )
            patch(axes, across(low), top + 4, across(tiny) - across(low), 26, colour=GREY)
            patch(axes, across(tiny), top + 4, across(high) - across(tiny), 26, colour=EVERY_RANK)
            spoken.append(
                f"{name}: {exponent} bits of exponent, {fraction} of fraction, all digits from "
                f"2^{round(tiny)} to 2^{round(high)}, fewer down to 2^{round(low)}"
            )
        foot = 52 + 62 * len(dtypes)
        patch(axes, left, foot + 6, 24, 16, colour=GREY)
        words(axes, left + 32, foot + 14, "sign", align="left", size=SMALL)
        patch(axes, left + 90, foot + 6, 24, 16, colour=EVERY_RANK)
        words(axes, left + 122, foot + 14, "exponent", align="left", size=SMALL)
        patch(axes, left + 220, foot + 6, 24, 16, colour=PAPER)
        words(axes, left + 252, foot + 14, "fraction", align="left", size=SMALL)
        for exponent in (-149, -24, 16, 128):
            words(axes, across(exponent), foot + 2, power(exponent), size=SMALL)
        words(axes, across(-75), foot + 26, "dark: fewer digits", size=SMALL)
        return Picture(axes, f"Number formats. Beside the sign, {'; '.join(spoken)}.")


def binades(numbers: Tensor) -> Counter[int]:
    """How many of the numbers (0 left out) lie from 2^e up to 2^(e+1), by e."""
    exponents = torch.frexp(numbers[numbers != 0].double()).exponent - 1
    found, counts = exponents.unique(return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def fp16_line(title: str, gradients: Mapping[str, Tensor]) -> Picture:
    """Histograms over the powers of two, one a row, on the line of what fp16 holds."""
    return _line(title, {name: binades(numbers) for name, numbers in gradients.items()})


def explore_loss_scale(gradients: Mapping[str, Tensor]) -> PictureExplorer:
    """A slider for the scale that the loss, and so every gradient, is multiplied by."""
    counted = {name: binades(numbers) for name, numbers in gradients.items()}

    def draw(scale: int) -> Picture:
        moved = {
            name: Counter({exponent + scale: count for exponent, count in counts.items()})
            for name, counts in counted.items()
        }
        return _line(f"Gradients of the loss times {power(scale)}", moved)

    slider = ipywidgets.IntSlider(value=0, min=0, max=32, description="2 to the")
    return PictureExplorer(draw, scale=slider)


def _line(title: str, rows: Mapping[str, Counter[int]]) -> Picture:
    if not 1 <= len(rows) <= 4 or not all(rows.values()):
        raise ValueError("fp16_line draws one to four rows of numbers that are not all 0")
    left, end, height = 60, 880, 84

    def across(exponent: float) -> float:
        return left + (end - left) * (exponent - LOWEST) / (HIGHEST - LOWEST)

    spoken = []
    bottom = 64 + (height + 50) * len(rows)
    with canvas(900, bottom + 66) as axes:
        words(axes, left, 24, title, align="left", bold=True)
        for border in (ZERO, FEWER, TOO_LARGE):
            x = across(border)
            axes.plot([x, x], [44, bottom], color=INK, linewidth=1, linestyle=(0, (4, 3)))
            words(axes, x, bottom + 54, power(border), size=SMALL)
        for name, low, high in REGIONS:
            colour = PAPER if low == FEWER else EVERY_RANK
            width = across(high) - across(low)
            patch(axes, across(low), bottom, width, 36, name, colour=colour, size=SMALL)
        for row, (name, counts) in enumerate(rows.items()):
            base, total = 60 + height + (height + 50) * row + 16, sum(counts.values())
            shown: Counter[int] = Counter()
            for exponent, count in counts.items():
                shown[min(max(exponent, LOWEST), HIGHEST - 1)] += count
            tall = [height * shown[e] / max(shown.values()) for e in range(LOWEST, HIGHEST)]
            edges = [across(e) for e in range(LOWEST, HIGHEST + 1)]
            tops = [base - t for t in tall]
            axes.stairs(tops, edges, baseline=base, fill=True, facecolor=GREY, edgecolor=INK)
            axes.plot([left, end], [base, base], color=INK, linewidth=1)
            shares = {
                region: sum(n for e, n in counts.items() if _region(e) == region) / total
                for region, *_ in REGIONS
            }
            for region, low, high in REGIONS:
                middle = (across(low) + across(high)) / 2
                words(axes, middle, base - height - 12, f"{shares[region]:.0%}", size=SMALL)
            words(axes, left, base + 14, name, align="left", size=SMALL)
            parts = ", ".join(f"{share:.0%} {region}" for region, share in shares.items())
            spoken.append(f"{name}: {parts}")
        return Picture(axes, f"{title}, as fp16 holds them. {'; '.join(spoken)}.")


def _region(exponent: int) -> str:
    return next((region for region, _, high in REGIONS if exponent < high), REGIONS[-1][0])
