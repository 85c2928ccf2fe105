from __future__ import annotations

import pytest
import torch

from minimegatron.figures import compare_prediction, predicted_and_measured


def said(capsys: pytest.CaptureFixture[str], prediction: object, measured: float) -> str:
    compare_prediction("bytes", prediction, measured)  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_no_prediction_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, None, 1536)
    assert out == "bytes\n  predicted  none yet\n  measured      1,536\n"


def test_what_a_formula_gave_is_not_called_measured(capsys: pytest.CaptureFixture[str]) -> None:
    compare_prediction("bytes", 1536, 1536, found="computed")
    assert capsys.readouterr().out.splitlines()[2] == "  computed   1,536   as predicted"


@pytest.mark.parametrize(
    ("prediction", "measured", "verdict"),
    [
        (1536, 1536, "as predicted"),
        (512, 1536.0, "3 times the prediction"),
        (0.5, 0.125, "0.25 times the prediction"),
        (0, 0, "as predicted"),
        (0, 7, "not as predicted"),
        (7, 0, "not as predicted"),
        (-3, 3, "not as predicted"),
    ],
)
def test_the_verdict_says_how_far_off(
    capsys: pytest.CaptureFixture[str], prediction: float, measured: float, verdict: str
) -> None:
    assert said(capsys, prediction, measured).rstrip().endswith(f"   {verdict}")


@pytest.mark.parametrize("prediction", ["576", [576], torch.tensor(576)])
def test_a_prediction_that_is_no_number_is_refused(prediction: object) -> None:
    with pytest.raises(TypeError, match="a prediction is a number or None"):
        compare_prediction("bytes", prediction, 576)  # type: ignore[arg-type]


def test_bars_need_values_that_can_be_drawn() -> None:
    assert "tp = 2: 1,000 and 900" in predicted_and_measured("x", {"tp = 2": (1000, 900)}, "B").alt
    for values in ({}, {"a": (1, -1)}):
        with pytest.raises(ValueError, match="at least one row"):
            predicted_and_measured("x", values, "B")
    assert predicted_and_measured("x", {"none": (0, 0)}, "B").png
