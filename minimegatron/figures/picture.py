"""A picture that also says in words what is to be seen.

A `Picture` shows itself in a notebook as a PNG and, folded below it, the same thing in words. The
words are computed from the numbers that were drawn, so that they cannot drift from the drawing.
They are an output of their own because JupyterLab, and the pages that nbconvert makes by default,
drop the alternative text of an image output; it is in the metadata for those that honour it.

PNG and not SVG: nbval compares SVG and HTML letter by letter and never a PNG, and a picture's bytes
may differ between versions of a font library.
"""

from __future__ import annotations

import base64
import html
import io

from IPython.display import display
from matplotlib.axes import Axes
from PIL import Image

from minimegatron.figures.style import PIXELS_PER_INCH

PIXEL_RATIO = 2  # drawn twice as fine as shown: sharp on a projector and on a laptop's dense screen


class Picture:
    """A finished picture.

    Attributes:
        png: the image as bytes, the same bytes for the same figure and version of matplotlib.
        alt: what is to be seen, in one or two sentences.
        width, height: the size on the screen, in CSS pixels.
    """

    def __init__(self, axes: Axes, alt: str) -> None:
        figure = axes.get_figure(root=True)
        assert figure is not None
        drawn, stored = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="rgba", dpi=PIXEL_RATIO * PIXELS_PER_INCH)
        across, down = figure.get_size_inches()
        self.width, self.height = round(across * PIXELS_PER_INCH), round(down * PIXELS_PER_INCH)
        size = (self.width * PIXEL_RATIO, self.height * PIXEL_RATIO)
        image = Image.frombytes("RGBA", size, drawn.getvalue()).convert("RGB")
        # A palette halves the file; patches are flat, so nothing is lost that an eye can see.
        image.quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(stored, "png")
        self.png = stored.getvalue()
        self.alt = alt

    def bundle(self) -> tuple[dict[str, str], dict[str, dict[str, str | int]]]:
        """Data and metadata of one notebook output that holds image and words."""
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        metadata = {"image/png": {"alt": self.alt, "width": self.width, "height": self.height}}
        return data, metadata

    def html(self) -> str:
        """The picture as HTML, with a real alternative text, for widgets and pages."""
        data = base64.b64encode(self.png).decode()
        return (
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(self.alt)}" '
            f'width="{self.width}" style="max-width: 100%; height: auto">'
        )

    def __repr__(self) -> str:
        return self.alt

    def _ipython_display_(self) -> None:
        data, metadata = self.bundle()
        display(data, metadata=metadata, raw=True)
        spoken = f"<details><summary>The picture in words</summary>\n\n{self.alt}\n\n</details>"
        display({"text/markdown": spoken, "text/plain": self.alt}, raw=True)
