"""`minimegatron features` and `bench features`: every feature does something, told in a table."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import minimegatron as mm
from minimegatron.cli import app, bench, features
from minimegatron.cli.steps import compare

BY_NAME = {
    feature.name + (" gradients" if feature.part[0] == "7" else ""): feature
    for feature in features.FEATURES
}


def measured(name):
    """Wire, saved and owned bytes of a rank, with the feature over without."""
    feature = BY_NAME[name]
    sizes = {"hidden_size": 32, "seq_length": 16, "vocab_size": 64}
    one, other = mm.launch(compare, feature, sizes, 1, tp=feature.tp, dp=feature.dp)[0]
    assert len(one.seconds) == len(other.seconds) == 1
    return one.wire / other.wire, one.saved / other.saved, one.owned / other.owned


@pytest.mark.parametrize(
    ("name", "wire", "saved", "owned"),
    [
        ("bf16", (0.4, 0.6), (0.4, 0.7), (1.1, 1.15)),  # 2 + 4 + 12 bytes, not 4 + 4 + 8
        ("full", (1.2, 1.5), (0.1, 0.5), (1, 1)),
        ("selective", (1, 1), (0.5, 0.95), (1, 1)),
        ("gathered again", (1.1, 1.35), (0.5, 0.9), (1, 1)),
        ("gathered, kept", (1, 1.15), (0.5, 0.99), (1, 1)),
        ("stage 1", (0.99, 1.01), (1, 1), (0.74, 0.77)),  # of 16 bytes: 12, 10, 8
        ("stage 2", (0.99, 1.01), (1, 1), (0.62, 0.66)),
        ("stage 3", (1.4, 1.6), (1, 1), (0.49, 0.53)),
        ("row layer in 2 chunks", (1, 1), (0.9, 1.2), (1, 1)),
        ("2 nodes of 2 ranks gradients", (0.99, 1.01), (1, 1), (1, 1)),
        ("bf16 gradients", (0.49, 0.51), (1, 1), (1.24, 1.26)),  # the residual
        ("top-k gradients", (0.01, 0.1), (1, 1), (1.24, 1.26)),
        ("1-bit gradients", (0.03, 0.2), (1, 1), (1.24, 1.26)),
        ("powersgd gradients", (0.05, 0.5), (1, 1), (1.24, 1.26)),
    ],
)
def test_every_feature_changes_the_bytes_that_it_is_there_for(name, wire, saved, owned):
    for found, (least, most) in zip(measured(name), (wire, saved, owned), strict=True):
        assert least - 1e-9 <= found <= most + 1e-9


def test_the_features_are_from_every_part():
    assert {feature.part[0] for feature in features.FEATURES} == set("234567")


def test_the_table_has_a_row_a_feature_and_the_list_of_what_does_not_go_together(monkeypatch):
    chosen = tuple(BY_NAME[name] for name in ("stage 3", "top-k gradients"))
    monkeypatch.setattr(features, "FEATURES", chosen)
    monkeypatch.setattr(features, "_fusion", list)
    result = CliRunner().invoke(app, ["features"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    [zero] = [line for line in lines if "5 ZeRO" in line]
    assert "stage 3, dp=2" in zero and "<= 1e-10" in zero and " 1.50 " in zero
    [sparse] = [line for line in lines if "7 gradients" in line]
    assert "lost" in sparse
    assert sum("1 counting" in line for line in lines) == 4
    for clash in features.INCOMPATIBLE:
        assert f"  {clash.first} with {clash.second}: {clash.why}" in lines


def test_a_feature_that_is_not_equal_fails_the_command(monkeypatch):
    class Deaf(mm.RowParallelLinear):
        def forward(self, x):
            return super().forward(x * 0)

    wrong = features.Feature("6 overlap", "deaf", tp=2, using={"RowParallelLinear": Deaf})
    monkeypatch.setattr(features, "FEATURES", (wrong,))
    for name in ("_fusion", "_counts"):
        monkeypatch.setattr(features, name, list)
    result = CliRunner().invoke(app, ["features"])
    assert result.exit_code == 1
    assert "NOT <=" in result.output


def test_bench_takes_names_of_parts(monkeypatch):
    result = CliRunner().invoke(app, ["bench", "features", "flying"])
    assert result.exit_code == 1
    assert "'flying' is not one of launching, " in result.output
    monkeypatch.setattr(features, "FEATURES", (BY_NAME["stage 1"],))
    monkeypatch.setattr(bench, "FEATURE_SIZES", {"hidden_size": 16, "seq_length": 8})
    result = CliRunner().invoke(app, ["bench", "features"])
    assert result.exit_code == 0
    assert "ZeRO: stage 1" in " ".join(result.output.split())
    assert "launch on 4 ranks" not in result.output
