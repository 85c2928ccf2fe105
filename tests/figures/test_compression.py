from __future__ import annotations

import re

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


def test_nothing_is_lost_what_came_in_was_sent_or_stays() -> None:
    gradients = [(4, 3, 2, 1), (1, 1, 5, 2), (0, 3, 3, 3)]
    told = figures.error_feedback(gradients, k=2).alt
    steps = re.findall(r"sent ([\d ]+), stays ([\d ]+)", told)
    kept = [0.0] * 4
    for gradient, (sent, stays) in zip(gradients, steps, strict=True):
        came = sum(gradient) + sum(kept)
        kept = [float(value) for value in stays.split()]
        assert sum(map(float, sent.split())) + sum(kept) == came
        assert len(sent.split()) == 2
    assert steps[0] == ("4 3", "0 0 2 1")


def test_every_row_of_losses_has_its_share_of_the_bytes(drawn: list[Axes]) -> None:
    rows = {"none": (1.0, 4.5, None), "1-bit": (22.4, 4.67, 4.77)}
    picture = figures.losses_by_message("Loss", rows)
    texts = [t.get_text() for t in drawn[0].texts]
    assert {"all", "1/22 of none's"} <= set(texts)
    assert picture.alt.endswith("none 4.50; 1-bit 4.67, without feedback 4.77.")
    assert (
        len([line for line in drawn[0].lines if line.get_marker() == "o"]) == 3 + 2
    )  # and the key


def test_what_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="none below zero"):
        figures.error_feedback([(1, -1)])
    with pytest.raises(ValueError, match="up to 5 steps"):
        figures.error_feedback([(1, 2)] * 6)
    with pytest.raises(ValueError, match="one to eight rows, not 0"):
        figures.losses_by_message("Loss", {})
