"""Published tables beside what the course's formulas give: published, computed, within rounding.

A cell counts as reproduced when the computed value lies within half a unit of the last printed
digit. Where it was computed from figures that are themselves printed, what their own rounding
allows is added, and the verdict says so. What misses is shown with the value found and, where it
is known, the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from minimegatron.analysis.published import UNITS, figure


@dataclass(frozen=True)
class Cell:
    """One figure, `published` as it was printed and `computed` in the same unit.

    `inputs` is how far the rounding of the figures it was computed from can move it.
    """

    row: str
    what: str
    published: str
    computed: float
    inputs: float = 0.0
    note: str = ""

    @property
    def verdict(self) -> str:
        """Within rounding, within its inputs' rounding, or not reproduced."""
        value, half = figure(self.published)
        off = abs(self.computed - value) * (1 - 1e-12)  # a half itself, 1.875 for 1.88, is within
        if off <= half:
            return "within rounding"
        return "within its inputs' rounding" if off <= half + self.inputs else "not reproduced"

    @property
    def shown(self) -> str:
        """The computed value in the unit of the published one, with two digits more."""
        text = self.published.rstrip("".join(UNITS))
        unit = self.published[len(text) :]
        value = f"{self.computed / 10.0 ** UNITS.get(unit, 0):,.{len(text.partition('.')[2]) + 2}f}"
        return value.rstrip("0").rstrip(".") + unit


HEADINGS = ("", "", "published", "computed", "")


@dataclass(frozen=True)
class PublishedTable:
    """Cells of one published table; `str` and a notebook show them as a table."""

    title: str
    cells: list[Cell]
    remark: str = ""

    @property
    def missed(self) -> list[Cell]:
        """The cells that the formulas do not reproduce."""
        return [cell for cell in self.cells if cell.verdict == "not reproduced"]

    def rows(self) -> list[tuple[str, ...]]:
        """Row, column, published, computed, verdict with its note: words that never change."""
        return [
            (c.row, c.what, c.published, c.shown, c.verdict + (f": {c.note}" if c.note else ""))
            for c in self.cells
        ]

    def __str__(self) -> str:
        rows = [HEADINGS, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
            for a, b, c, d, e in rows
        ]
        return "\n".join([self.title, *lines, *([self.remark] if self.remark else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        sides = ("left", "left", "right", "right", "left")
        styles = [f'style="text-align:{side}"' for side in sides]
        columns = zip(styles, HEADINGS, strict=True)
        head = "".join(f'<th scope="col" {style}>{name}</th>' for style, name in columns)
        body = ""
        for row in self.rows():
            first, *rest = (escape(text) for text in row)
            cells = zip(styles[1:], rest, strict=True)
            line = "".join(f"<td {style}>{text}</td>" for style, text in cells)
            body += f'<tr><th scope="row" {styles[0]}>{first}</th>{line}</tr>'
        return (
            f"<table><caption {styles[0]}>{escape(self.title)}</caption>"
            f"<thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><p>{escape(self.remark)}</p>"
        )
