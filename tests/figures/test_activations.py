from __future__ import annotations

import time

import pytest

from minimegatron import figures
from minimegatron.analysis.activations import activation_bytes
from minimegatron.models.config import GPTConfig

THEN = GPTConfig(512, 256, 64, 3, 4, dropout=0.1, attention="explicit")
SBH, ASSB, OUTSIDE = 256 * 2 * 64, 4 * 256**2 * 2, 256 * 2 * (64 * 5 + 4 * 512)


def bars(alt: str, row: str) -> dict[str, float]:
    """The terms that the words give for a row."""
    words = alt.split(f"{row}: ")[1].split(", together")[0]
    pairs = (term.rsplit(" ", 1) for term in words.split(", "))
    return {name: float(value.replace(",", "")) for name, value in pairs}


def test_every_term_of_a_layer_is_in_its_group() -> None:
    alt = figures.activation_bars("Kept", {"none": (THEN, 1)}, 2, ("kB", 1e3)).alt
    found = bars(alt, "none")
    wanted = {
        "scores": 3 * 5 * ASSB,
        "attention": 3 * 11 * SBH,
        "MLP": 3 * 19 * SBH,
        "layer norms": 3 * 4 * SBH,
        "outside": OUTSIDE,
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value / 1e3, rel=5e-3)
    assert sum(wanted.values()) == activation_bytes(THEN, 2)


def test_marks_and_a_limit_are_in_the_unit_of_the_bars() -> None:
    alt = figures.activation_bars(
        "Kept", {"none": (THEN, 1)}, 2, ("MB", 1e6), {"none": 9e6}, ("a card", 11e6)
    ).alt
    assert "measured 9" in alt and "a card, 11." in alt


def test_the_ways_to_save_are_those_of_the_paper() -> None:
    alt = figures.ways_to_save().alt
    s, b, h, a, t, layers = 2048, 4, 6144, 64, 8, 48
    assert bars(alt, "tp")["scores"] == pytest.approx(layers * 5 * a * s**2 * b / t / 1e9, rel=5e-3)
    both = bars(alt, "+ both")
    inside = both["attention"] + both["MLP"] + both["layer norms"]
    assert inside == pytest.approx(layers * 34 * s * b * h / t / 1e9, rel=5e-3)
    assert bars(alt, "full")["layers' inputs"] == pytest.approx(layers * 2 * s * b * h / 1e9, 5e-3)
    today = figures.ways_to_save(attention="today").alt
    assert bars(today, "tp")["scores"] < 0.02 * bars(alt, "tp")["scores"]


def test_moving_a_slider_draws_again_in_time() -> None:
    explorer = figures.explore_activations()
    assert explorer.first.alt == figures.ways_to_save().alt
    seconds = []
    for name, value in (("seq", 32768), ("tp", 1), ("attention", "today")):
        start = time.process_time()
        explorer.controls[name].value = value
        seconds.append(time.process_time() - start)
    assert explorer.picture.value == figures.ways_to_save(32768, 1, "today").html()
    assert sorted(seconds)[1] < 0.2
