"""Figures that papers print, to hold the course's formulas against: published.json, read here.

A printed figure is exact to half a unit of its last digit and no further: "1.2" billion parameters
are 1.15 to 1.25. So figures are kept as they were printed, in strings. Each paper goes by its arXiv
number: 1909.08053 Megatron-LM, 2104.04473 Narayanan, 2205.05198 Korthikanti, 1910.02054 ZeRO.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

UNITS = {"M": 6, "B": 9, "T": 12}  # powers of ten


def published(paper: str, table: str) -> Any:
    """A table of a paper, as published.json holds it: `published("2104.04473", "table 1")`.

    Raises ValueError for an unknown paper or table, naming the known ones.
    """
    papers = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    del papers["_about"]
    for known, name in ((papers, paper), (papers.get(paper), table)):
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
    return papers[paper][table]


def figure(text: str) -> tuple[float, float]:
    """A printed figure and half a unit of its last digit: "1.2B" -> (1.2e9, 0.05e9)."""
    scale = UNITS.get(text[-1], 0)
    digits = Decimal(text[:-1] if scale else text)
    return float(digits.scaleb(scale)), 0.5 * 10.0 ** (int(digits.as_tuple().exponent) + scale)
