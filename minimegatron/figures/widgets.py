"""Sliders: a picture that is drawn again while a parameter is moved.

The function that draws is an ordinary one and can be called, and tested, without any widget. An
explorer carries the picture of its first values as a plain image: a reader without a kernel sees
that, and a stored notebook holds nothing of the widget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
from traitlets import Bunch

from minimegatron.figures.matmul import split_columns, split_rows
from minimegatron.figures.picture import Picture


class PictureExplorer(ipywidgets.VBox):
    """`controls` (name -> ipywidget with a value) above the picture that `draw(**values)` returns.

    The picture is set as HTML with an alternative text, because ipywidgets' Image has none.
    """

    def __init__(self, draw: Callable[..., Picture], **controls: ipywidgets.ValueWidget) -> None:
        self.controls = controls
        self._draw = draw
        self.first = self._drawn()
        self.picture = ipywidgets.HTML(self.first.html())
        for control in controls.values():
            control.observe(self._redraw, names="value")
        super().__init__(children=[*controls.values(), self.picture])

    def _drawn(self) -> Picture:
        return self._draw(**{name: control.value for name, control in self.controls.items()})

    def _redraw(self, change: Bunch) -> None:
        self.picture.value = self._drawn().html()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.first.bundle()
        return {**super()._repr_mimebundle_(**kwargs), **data}, metadata


def explore_split() -> PictureExplorer:
    """Sliders for tp and for the way A is cut, above the picture of the product."""
    return PictureExplorer(
        split_matrix,
        tp=ipywidgets.SelectionSlider(options=(1, 2, 4, 8), value=2, description="tp"),
        cut=ipywidgets.SelectionSlider(options=("columns", "rows"), description="cut A in"),
    )


def split_matrix(tp: int, cut: str) -> Picture:
    """The picture of Y = XA with A cut in "columns" or in "rows"."""
    return {"columns": split_columns, "rows": split_rows}[cut](tp)
