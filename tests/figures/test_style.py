"""Colours against formulas of their own: CIE lightness and a simulation of colour blindness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minimegatron.figures.style import HATCHES, RANK_COLOURS, ink_on, rank_colour

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lightness(rgb: np.ndarray) -> float:
    """CIE L*, 0 to 100, of linear RGB."""
    y = float(np.clip(rgb, 0, 1) @ [0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(y) - 16 if y > 216 / 24389 else y * 24389 / 27


@pytest.mark.parametrize("sight", SIGHT)
def test_four_ranks_differ_in_lightness_for_every_kind_of_sight(sight: str) -> None:
    seen = [lightness(np.array(SIGHT[sight]) @ linear(rank_colour(rank))) for rank in range(4)]
    assert min(abs(a - b) for a, b in itertools.combinations(seen, 2)) > 8


def test_eight_ranks_differ_on_a_grey_print() -> None:
    seen = [lightness(linear(colour)) for colour in RANK_COLOURS]
    assert min(abs(a - b) for a, b in itertools.combinations(seen, 2)) > 5


@pytest.mark.parametrize("colour", RANK_COLOURS)
def test_labels_are_readable_on_every_colour(colour: str) -> None:
    dark, bright = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (colour, ink_on(colour)))
    assert (bright + 0.05) / (dark + 0.05) > 4.5  # WCAG 2, level AA


def test_every_kind_of_work_has_its_own_hatch() -> None:
    assert list(HATCHES) == ["F", "B", "I", "W"]
    assert len(set(HATCHES.values())) == len(HATCHES)
