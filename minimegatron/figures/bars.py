"""Where the bytes are: one bar a row, cut into its terms, with marks where something was measured.

Lessons 10, 12 and 14 draw memory with it. A term keeps its look, a grey or a hatch, in every row;
colours are left to ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import EVERY_RANK, INK, PAPER, SMALL, canvas, patch, words

LOOKS = (
    (EVERY_RANK, ""), ("#8F8F8F", ""), (PAPER, ".."), ("#4A4A4A", ""), (PAPER, "--"),
    ("#BDBDBD", "||"), (PAPER, ""), (EVERY_RANK, "oo"),
)  # fmt: skip
RIGHT, BAR, ROW = 880, 34, 50  # pixels
LETTER = 9.8  # pixels: as wide as a letter of the small size gets


def stacked_bars(
    title: str,
    unit: str,
    rows: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, float | Mapping[str, float]] | None = None,
    limit: tuple[str, float] | None = None,
) -> Picture:
    """Horizontal bars to one scale, each the sum of its terms.

    Args:
        rows: row label -> {term: value in `unit`}; a term may be missing from a row.
        measured: row label -> the whole in `unit`, or {term: value}: marks below the bar, at the
            end of what they measure.
        limit: a label and a value in `unit`, drawn as a dashed line: what a GPU holds, say.

    Raises ValueError for no row, a value below zero, more terms than there are looks, or a measured
    row that has no bar.
    """
    marks: dict[str, Mapping[str, float]] = {
        row: value if isinstance(value, Mapping) else {"": value}
        for row, value in (measured or {}).items()
    }
    terms = list(dict.fromkeys(term for parts in rows.values() for term in parts))
    every = [value for parts in (*rows.values(), *marks.values()) for value in parts.values()]
    if not every or min(every) < 0 or len(terms) > len(LOOKS) or marks.keys() - rows.keys():
        raise ValueError(
            f"stacked_bars draws one row or more of up to {len(LOOKS)} terms, none below zero, "
            f"and marks on those rows: not {len(rows)} rows, {len(terms)} terms, marks on "
            f"{list(marks)}"
        )
    looks = dict(zip(terms, LOOKS, strict=False))
    sums = [sum(parts.values()) for parts in (*rows.values(), *marks.values())]
    shown = {row: number(sum(parts.values())) for row, parts in rows.items()}
    for row, parts in marks.items():
        shown[row] += f", measured {number(sum(parts.values()))}"
    left = 40 + LETTER * max(map(len, rows))
    room = RIGHT - left - 14 - LETTER * max(map(len, shown.values()))
    scale = room / (max([*sums, limit[1] if limit else 0]) or 1)
    key = _key(terms)
    top = 76 + 32 * len({line for _, line in key.values()})
    bottom = top + ROW * len(rows)
    with canvas(900, bottom + (34 if limit else 4)) as axes:
        words(axes, 20, 28, f"{title} ({unit})", align="left", bold=True)
        for term, (x, line) in key.items():
            colour, hatch = looks[term]
            patch(axes, x, 54 + 32 * line, 30, 20, colour=colour, hatch=hatch)
            words(axes, x + 38, 64 + 32 * line, term, align="left", size=SMALL)
        if limit:
            x = left + scale * limit[1]
            axes.plot([x, x], [top - 12, bottom], color=INK, linestyle=(0, (6, 3)))
            label, side = f"{limit[0]}: {number(limit[1])}", "right" if x > 450 else "left"
            words(axes, x, bottom + 16, label, align=side, size=SMALL)
        for i, (row, parts) in enumerate(rows.items()):
            y, x, at = top + ROW * i, left, left
            words(axes, 20, y + BAR / 2, row, align="left", size=SMALL)
            for term, value in parts.items():
                colour, hatch = looks[term]
                label, width = number(value), scale * value
                label = label if width > LETTER * len(label) + (30 if hatch else 12) else ""
                if value:
                    patch(axes, x, y, width, BAR, label, colour=colour, hatch=hatch, size=SMALL)
                x += width
            for value in marks.get(row, {}).values():
                at += scale * value
                axes.plot([at], [y + BAR + 6], marker="^", markersize=9, color=INK)
            words(axes, max(x, at) + 10, y + BAR / 2, shown[row], align="left", size=SMALL)
        told = "; ".join(
            f"{row}: {', '.join(f'{term} {number(v)}' for term, v in parts.items())}, "
            f"together {shown[row]}"
            for row, parts in rows.items()
        )
        dashed = f" A dashed line marks {limit[0]}, {number(limit[1])}." if limit else ""
        return Picture(axes, f"{title}, stacked bars in {unit}. {told}.{dashed}")


def number(value: float) -> str:
    """A whole number with its thousands apart, any other with three digits: 1,536 or 16.6."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def _key(terms: list[str]) -> dict[str, tuple[float, int]]:
    """Each term's place in the key: pixels from the left, and the line."""
    places: dict[str, tuple[float, int]] = {}
    x, line = 20.0, 0
    for term in terms:
        width = 38 + LETTER * len(term) + 26
        if x > 20 and x + width > RIGHT + 20:
            x, line = 20.0, line + 1
        places[term] = (x, line)
        x += width
    return places
