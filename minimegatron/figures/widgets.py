"""Sliders: a picture that is drawn again while its parameter is moved.

The function that draws is an ordinary one and can be called, and tested, without any widget. A
slider carries the picture of its first value as a plain image: a reader without a kernel sees that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from traitlets import Bunch

from minimegatron.figures.matmul import split_columns, split_rows
from minimegatron.figures.picture import Picture


class PictureSlider(ipywidgets.VBox):
    """A slider over `values` above the picture that `draw(value)` returns.

    The picture is set as HTML with an alternative text, because ipywidgets' Image has none.
    """

    def __init__(
        self, draw: Callable[[int], Picture], values: Sequence[int], value: int, name: str
    ) -> None:
        self.first = draw(value)
        options = list(values)
        self.slider = ipywidgets.SelectionSlider(options=options, value=value, description=name)
        self.picture = ipywidgets.HTML(self.first.html())
        self._draw = draw
        self.slider.observe(self._redraw, names="value")
        super().__init__(children=[self.slider, self.picture])

    def _redraw(self, change: Bunch) -> None:
        self.picture.value = self._draw(change["new"]).html()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.first.bundle()
        return {**super()._repr_mimebundle_(**kwargs), **data}, metadata


def explore_split(cut: str = "columns", tp: int = 4) -> PictureSlider:
    """A slider over tp for the product cut in "columns" or in "rows" of A."""
    draw = {"columns": split_columns, "rows": split_rows}[cut]
    return PictureSlider(draw, (1, 2, 4, 8), tp, "tp")
