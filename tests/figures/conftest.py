from __future__ import annotations

from collections.abc import Callable

import pytest
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.picture import Picture

BARS = {"tp = 1": (1000, 1000), "tp = 4": (250, 1_234_567)}

EVERY_PICTURE: dict[str, Callable[[], Picture]] = {
    **{f"split_columns {tp}": lambda tp=tp: figures.split_columns(tp) for tp in range(1, 9)},
    **{f"split_rows {tp}": lambda tp=tp: figures.split_rows(tp) for tp in range(1, 9)},
    **{f"row_bias {tp}": lambda tp=tp: figures.row_bias(tp) for tp in range(1, 5)},
    **{f"f_and_g {tp}": lambda tp=tp: figures.f_and_g(tp) for tp in (2, 4)},
    **{f"notebook {n}": lambda n=n: figures.notebook_and_ranks(n) for n in (1, 4)},
    "mesh 2 2": lambda: figures.mesh(2, 2),
    "mesh 4 3": lambda: figures.mesh(4, 3),
    "course_map": lambda: figures.course_map(here=3),
    "key": lambda: figures.key(),
    "predicted_and_measured": lambda: figures.predicted_and_measured("Held", BARS, "bytes"),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every picture that the test draws."""
    seen: list[Axes] = []
    finish = Picture.__init__

    def remember(picture: Picture, axes: Axes, alt: str) -> None:
        seen.append(axes)
        finish(picture, axes, alt)

    monkeypatch.setattr(Picture, "__init__", remember)
    return seen
