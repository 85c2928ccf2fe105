"""The stored runs of lesson 16, and the experiment that made them."""

from __future__ import annotations

import pytest

from minimegatron import experiments
from minimegatron.cli.train import Settings
from minimegatron.experiments import cheaper_gradients

SMALL = Settings(steps=8, batch=4, seq=16, hidden=32, layers=1, vocab=260)


@pytest.fixture(scope="module")
def small():
    lines = []
    result = cheaper_gradients.run(lines.append, SMALL)
    assert len(lines) == len(cheaper_gradients.RUNS)
    return result["runs"]


def test_every_run_starts_alike_and_goes_its_own_way(small):
    first = {run["losses"][0] for run in small.values()}
    last = {run["losses"][-1] for run in small.values()}
    assert max(first) - min(first) < 1e-5
    assert len(last) == len(small)
    assert all(
        [step for step, _ in run["validation"]] == list(range(1, 9)) for run in small.values()
    )


def test_feedback_changes_the_losses_and_not_the_bytes(small):
    for name, run in small.items():
        if name.endswith(", no feedback"):
            with_feedback = small[name.removesuffix(", no feedback")]
            assert run["wire_bytes"] == with_feedback["wire_bytes"]
            assert run["losses"] != with_feedback["losses"]


def test_what_is_stored_was_made_with_the_settings_and_runs_that_the_command_has_now():
    stored = experiments.stored("cheaper_gradients")
    assert Settings(**stored["settings"]) == cheaper_gradients.SETTINGS
    assert {
        n: (r["method"], r["options"]) for n, r in stored["runs"].items()
    } == cheaper_gradients.RUNS
    assert experiments.file_of("cheaper_gradients").stat().st_size < 100_000


def test_the_claims_of_the_lesson_hold_in_what_is_stored():
    runs = experiments.stored("cheaper_gradients")["runs"]
    last = {name: run["validation"][-1][1] for name, run in runs.items()}
    bytes_of = {name: run["wire_bytes"] for name, run in runs.items()}
    assert abs(last["bf16"] - last["none"]) < 0.01
    for name in ("top-k 10%", "1-bit", "PowerSGD"):
        assert last["none"] < last[name] < last[f"{name}, no feedback"]
    assert last["top-k 1%"] > last["top-k 1%, no feedback"]  # 400 steps are too few for it
    assert bytes_of["none"] > 20 * bytes_of["1-bit"]
