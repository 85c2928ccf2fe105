"""The published figures as printed, and what a printed figure can mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimegatron.analysis import published as module
from minimegatron.analysis.published import figure, published


@pytest.mark.parametrize(
    ("text", "value", "half"),
    [
        ("1.2B", 1.2e9, 0.05e9), ("355M", 355e6, 0.5e6), ("1T", 1e12, 0.5e12), ("-3", -3, 0.5),
        ("502.0", 502, 0.05), ("1.88", 1.88, 0.005), ("120", 120, 0.5),
    ],
)  # fmt: skip
def test_a_printed_figure_is_exact_to_half_its_last_digit(
    text: str, value: float, half: float
) -> None:
    assert figure(text) == pytest.approx((value, half))


def test_every_paper_has_its_arxiv_number_and_a_title() -> None:
    papers = json.loads(Path(module.__file__).with_suffix(".json").read_text())
    assert set(papers) == {
        "_about", "1909.08053", "2104.04473", "2205.05198", "1910.02054", "docs"
    }  # fmt: skip
    assert all(papers[number]["title"] for number in papers if number != "_about")


def test_figures_are_those_that_the_papers_print() -> None:
    """Some of each, typed from the papers: the file cannot be bent to fit a formula unseen."""
    rows = published("1909.08053", "table 1")["rows"]
    assert [(r["hidden"], r["layers"], r["heads"], r["params_b"]) for r in rows] == [
        (1536, 40, 16, "1.2"), (1920, 54, 20, "2.5"), (2304, 64, 24, "4.2"), (3072, 72, 32, "8.3"),
    ]  # fmt: skip
    assert published("1909.08053", "table 8")["speedup"] == {
        "1": "1.0", "2": "1.64", "4": "2.34", "8": "2.98"
    }  # fmt: skip
    assert published("1909.08053", "abstract")["petaflops"] == "15.1"
    last = published("2104.04473", "table 1")["rows"][-1]
    assert (last["tflops"], last["pct_peak"], last["agg_pflops"]) == ("163", "52", "502.0")
    assert published("2104.04473", "text")["gpt3"]["days"] == "34"
    assert published("2205.05198", "table 4")["rows"]["Selective + Sequence"][2:] == ["20.3", "4"]
    assert published("2205.05198", "text")["530B output tensors, GiB"] == "2.73"
    assert published("1910.02054", "table 1")["os_g"] == [
        "120", "41.3", "21.6", "16.6", "15.4", "15.1"
    ]  # fmt: skip
    assert published("docs", "distributed optimizer")["bf16_fp32"] == ["18", "6+12/d"]


def test_what_is_unknown_is_told_what_is_known() -> None:
    with pytest.raises(ValueError, match="'1706.03762' is not one of 1909.08053"):
        published("1706.03762", "table 1")
    with pytest.raises(ValueError, match="'table 9' is not one of title, table 1"):
        published("1909.08053", "table 9")
