"""The definition of "equal", and words that never change."""

from __future__ import annotations

import math

import pytest
import torch

from minimegatron.training.report import BANDS, ParityReport, tensor_error


def report(**errors):
    made = ParityReport("parity tp=2", BANDS[torch.float64], [])
    for kind, error in errors.items():
        made.note(kind, "some.weight", error)
    return made


def test_the_error_is_relative_to_the_tensors_own_largest_value():
    found, wanted = torch.tensor([1.0, 4.2]), torch.tensor([1.0, 4.0])
    assert tensor_error(found, wanted, largest=100.0) == pytest.approx(0.05)


def test_a_tensor_that_is_zero_in_mathematics_is_judged_by_the_largest_of_its_kind():
    found, wanted = torch.tensor([3e-17]), torch.tensor([-1e-17])
    assert tensor_error(found, wanted, largest=1.0) == pytest.approx(4e-14, rel=1e-3)


def test_what_is_not_finite_or_of_another_shape_is_infinitely_wrong():
    nan = torch.tensor([math.nan])
    assert tensor_error(nan, torch.ones(1), 1.0) == math.inf
    assert tensor_error(torch.ones(1), nan, 1.0) == math.inf
    assert tensor_error(torch.ones(2), torch.ones(1), 1.0) == math.inf
    assert tensor_error(torch.ones(1), torch.zeros(1), 0.0) == math.inf
    assert tensor_error(torch.zeros(1), torch.zeros(1), 0.0) == 0.0


def test_the_worst_tensor_is_named_and_missing_or_surplus_ones_are_errors():
    made = report()
    wanted = {"a": torch.ones(2), "b": torch.ones(2)}
    made.compare("gradients", {"a": torch.ones(2), "b": torch.tensor([1.0, 1.5])}, wanted)
    assert made.errors == {"gradients": 0.5}
    assert made.worst == {"gradients": "b"}
    made.compare("gradients", {"a": torch.ones(2)}, wanted, partly=True)
    assert made.errors == {"gradients": 0.5}
    made.compare("logits", {"a": torch.ones(2)}, wanted)
    assert (made.errors["logits"], made.worst["logits"]) == (math.inf, "b")
    made.compare("loss", wanted | {"c": torch.ones(1)}, wanted)
    assert made.worst["loss"] == "c"


def test_it_is_ok_only_when_every_error_is_within_its_band():
    assert report(loss=1e-11, gradients=9e-11).ok
    assert not report(loss=1e-11, gradients=2e-10).ok
    assert not report(loss=math.inf).ok
    assert report(masks=0.0).ok
    assert not report(masks=math.inf).ok


def test_the_words_are_rounded_and_name_the_culprit():
    text = str(report(loss=3.21e-13, gradients=0.237, grad_norm=math.inf, masks=0.0))
    assert text.splitlines() == [
        "parity tp=2: NOT EQUAL",
        "  loss           equal (<= 1e-10)",
        "  gradients      DIFFERENT by more than 1e-01; worst: some.weight",
        "  gradient norm  DIFFERENT; worst: some.weight",
        "  dropout masks  as they should be",
    ]
    assert repr(report(loss=1e-13)) == repr(report(loss=5e-14))


def test_the_table_says_the_same_with_row_and_column_headers():
    html = report(loss=1e-13, gradients=0.5)._repr_html_()
    assert html == report(loss=2e-13, gradients=0.3)._repr_html_()
    assert "<caption" in html and 'scope="col"' in html and 'scope="row"' in html
    assert "equal (&lt;= 1e-10)" in html
    assert "NOT EQUAL" in html
