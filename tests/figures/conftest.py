from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture


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
