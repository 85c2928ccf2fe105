"""Sliders: a picture that is drawn again while a parameter is moved.

The function that draws is an ordinary one and can be called, and tested, without any widget. An
explorer carries the picture of its first values as a plain image: a reader without a kernel sees
that, and a stored notebook holds nothing of the widget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from traitlets import Bunch

from minimegatron.figures.matmul import split_columns, split_rows
from minimegatron.figures.picture import Picture


class PictureExplorer(ipywidgets.VBox):
    """A slider for each of `choices` (name -> values) above the picture `draw(**values)`.

    The picture is set as HTML with an alternative text, because ipywidgets' Image has none.
    """

    def __init__(self, draw: Callable[..., Picture], **choices: Sequence[Any]) -> None:
        self.sliders = {
            name: ipywidgets.SelectionSlider(options=list(values), description=name)
            for name, values in choices.items()
        }
        self._draw = draw
        self.first = self._drawn()
        self.picture = ipywidgets.HTML(self.first.html())
        for slider in self.sliders.values():
            slider.observe(self._redraw, names="value")
        super().__init__(children=[*self.sliders.values(), self.picture])

    def _drawn(self) -> Picture:
        return self._draw(**{name: slider.value for name, slider in self.sliders.items()})

    def _redraw(self, change: Bunch) -> None:
        self.picture.value = self._drawn().html()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.first.bundle()
        return {**super()._repr_mimebundle_(**kwargs), **data}, metadata


def explore_split() -> PictureExplorer:
    """Sliders for tp and for the way A is cut, above the picture of the product."""
    return PictureExplorer(split_matrix, tp=(1, 2, 4, 8), cut=("columns", "rows"))


def split_matrix(tp: int, cut: str) -> Picture:
    """The picture of Y = XA with A cut in "columns" or in "rows"."""
    return {"columns": split_columns, "rows": split_rows}[cut](tp)
