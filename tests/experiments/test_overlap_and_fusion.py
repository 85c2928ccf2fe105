"""What overlap and fusion are worth: the rows are all there, and the model is right by itself."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from minimegatron import experiments
from minimegatron.cli import app
from minimegatron.experiments import overlap_and_fusion
from minimegatron.experiments.kernels import Traffic
from minimegatron.experiments.overlap_and_fusion import in_chunks
from minimegatron.experiments.pairs import Row, Sizes
from minimegatron.figures.overlap import chunk_ledger

SMALL = Sizes(rounds=3, tokens=64, hidden=32, layers=2, numbers=256)


def small_run(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap_and_fusion.run, "__defaults__", (SMALL,))
    file = tmp_path / "small.json"
    arguments = ["experiment", "overlap_and_fusion", "--out", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())


def names(document, parts):
    kept = [name for name in document["rows"] if ("softmax" in name or "GeLU" in name) in parts]
    return ["".join(c for c in name if not c.isdigit()) for name in kept]  # sizes differ


def test_a_small_run_has_the_rows_that_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap_and_fusion, "fusion", lambda mesh, sizes: ({}, []))
    document = small_run(tmp_path, monkeypatch)
    assert names(document, [False]) == names(experiments.stored("overlap_and_fusion"), [False])
    for row in document["rows"].values():
        assert 0 < row["lower"] <= row["median"] <= row["upper"] and row["expected"] > 0


@pytest.mark.slow
def test_a_small_run_with_compiled_kernels_has_the_counts_that_are_stored(tmp_path, monkeypatch):
    document, stored = small_run(tmp_path, monkeypatch), experiments.stored("overlap_and_fusion")
    assert names(document, [True, False]) == names(stored, [True, False])
    for name, counts in document["kernels"].items():
        for key in ("eager kernels", "fused kernels", "fused tensors"):
            assert counts[key] == stored["kernels"][name][key]


def test_what_is_stored_was_made_with_the_settings_that_the_command_has_now():
    stored = experiments.stored("overlap_and_fusion")
    assert stored["settings"] == vars(Sizes())
    assert stored["command"].startswith("minimegatron experiment overlap_and_fusion")
    assert experiments.file_of("overlap_and_fusion").stat().st_size < 10_000


@pytest.mark.parametrize("chunks", [1, 2, 8])
@pytest.mark.parametrize("times", [(10, 5, 0.1), (10, 20, 1), (10, 1, 2)])
def test_the_model_of_chunks_is_that_of_the_picture(chunks, times):
    assert in_chunks(*times, chunks) == pytest.approx(chunk_ledger(*times, chunks).records[-1].done)


def test_traffic_counts_kernels_and_the_bytes_they_read_and_write():
    x = torch.ones(4, 5)
    with Traffic() as traffic:
        (x.t() + 1).unsqueeze(0)
    assert (traffic.kernels, traffic.bytes) == (1, 2 * 20 * 4)
    with Traffic() as traffic:
        torch.add(x, x)
    assert (traffic.kernels, traffic.bytes) == (1, 3 * 20 * 4)


def test_a_row_keeps_the_median_and_the_middle_half():
    assert Row("a", [5.0, 1.0, 2.0, 3.0, 4.0], 0.5).plain() == {
        "lower": 2.0, "median": 3.0, "upper": 4.0, "expected": 0.5,
    }  # fmt: skip
