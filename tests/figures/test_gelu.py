from __future__ import annotations

import base64
import time

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch.nn.functional import gelu

from minimegatron import figures


@pytest.mark.parametrize("a, b", [(4.0, -4.0), (0.5, 1.5), (-2.0, -2.0), (1.0, -0.5)])
def test_the_numbers_are_those_of_torch(a: float, b: float) -> None:
    first, second, both = gelu(torch.tensor([a, b, a + b]).double(), approximate="tanh").tolist()
    off = abs(first + second - both)
    words = figures.gelu_of_sum(a, b).alt
    assert f"off by {off:.2f}." in words
    assert f"GELU(a + b) = {round(both, 2) + 0.0:.2f}" in words
    assert "-0.00" not in words


def test_the_points_lie_on_the_curve(drawn: list[Axes]) -> None:
    figures.gelu_of_sum(2.0, 1.0)
    curve, *points = (np.asarray(line.get_xydata()) for line in drawn[0].lines)
    for x, (place,) in zip((2.0, 1.0, 3.0), points[::2], strict=True):
        across = np.interp(x, (-8, 8), curve[[0, -1], 0])
        assert place == pytest.approx((across, np.interp(across, *curve.T)), abs=0.5)


def test_numbers_outside_the_picture_are_refused() -> None:
    for a, b in ((9.0, -9.0), (5.0, 4.0)):
        with pytest.raises(ValueError, match="do not fit"):
            figures.gelu_of_sum(a, b)


def test_moving_a_slider_draws_the_picture_again_in_time() -> None:
    explorer = figures.explore_gelu()
    data, _ = explorer._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == figures.gelu_of_sum().png
    seconds = []
    for a in (-4.0, -1.5, 0.0, 2.0, 3.5):
        start = time.process_time()
        explorer.controls["a"].value = a
        seconds.append(time.process_time() - start)
        assert explorer.picture.value == figures.gelu_of_sum(a, -4.0).html()
    assert sorted(seconds)[2] < 0.2
