"""Pictures of one matrix product Y = XA, cut over the ranks of an axis.

arXiv:1909.08053, section 3, equations 2 and 3; Megatron-LM's ColumnParallelLinear and
RowParallelLinear. X is (rows, inner), A (inner, columns), Y (rows, columns); in a picture equal
dimensions have equal lengths. The columns of A run from left to right in all of the course.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    LARGE,
    NORMAL,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)

TOKENS, INNER, COLUMNS = 6, 8, 16  # the sizes written below the blocks: those of lesson 03
SIDE = 184  # of the inner dimension, X's width and A's height, in pixels
UNCUT = "X times A equals Y. With one rank nothing is cut and nothing is sent."


def split_columns(tp: int = 4) -> Picture:
    """X times A cut into `tp` groups of columns: each rank makes its own columns of Y.

    Raises ValueError for a `tp` that does not divide the sizes; so does split_rows.
    """
    _divides(tp)
    rows, columns, middle = 110, 260, 165
    x, a, y = (TOKENS, INNER), (INNER, COLUMNS // tp), (TOKENS, COLUMNS // tp)
    with canvas(900, 345) as axes:
        words(axes, 112, 35, "X, on every rank")
        _bands(axes, "X", (20, middle), (SIDE, rows), 1)
        words(axes, 232, middle, "×", size=LARGE)
        words(axes, 390, 35, _cut("A", "columns", tp))
        _bands(axes, "A", (260, middle), (columns, SIDE), tp)
        words(axes, 565, middle, "=", size=LARGE)
        words(axes, 740, 35, _cut("Y", "columns", tp))
        _bands(axes, "Y", (610, middle), (columns, rows), tp)
        for centre, shape, cut in ((112, x, False), (390, a, True), (740, y, True)):
            words(axes, centre, 277, _held(shape, tp if cut else 1))
        words(axes, 450, 322, "The index is the rank that holds the piece. Forward sends nothing.")
        alt = (
            f"X, whole on every rank, times A, cut from left to right into {tp} groups of columns, "
            f"equals Y, cut the same way: {_each(tp, 'makes Y_{0} from X and A_{0}')}. A rank "
            f"holds X, {_by(x)}, its part of A, {_by(a)}, and makes {_by(y)} of Y. Nothing is sent."
        )
        return Picture(axes, alt if tp > 1 else UNCUT)


def split_rows(tp: int = 4) -> Picture:
    """X cut in columns, A in rows: partial sums as large as Y, which an all-reduce adds."""
    _divides(tp)
    rows, columns, middle = 110, 130, 200
    x, a, y = (TOKENS, INNER // tp), (INNER // tp, COLUMNS), (TOKENS, COLUMNS)
    step = min(30, 180 / tp)  # from one sheet of the pile to the next
    with canvas(900, 425) as axes:
        words(axes, 112, 35, _cut("X", "columns", tp))
        _bands(axes, "X", (20, middle), (SIDE, rows), tp)
        words(axes, 224, middle, "×", size=LARGE)
        words(axes, 310, 35, _cut("A", "rows", tp))
        _bands(axes, "A", (245, middle), (columns, SIDE), tp, downwards=True)
        words(axes, 394, middle, "=", size=LARGE)
        words(axes, 505, 35, "one sheet a rank")
        top = middle - (rows + step * (tp - 1)) / 2
        for rank in range(tp):  # rank 0's sheet lies at the back
            left, colour = 415 + 8 * rank, rank_colour(rank) if tp > 1 else EVERY_RANK
            patch(axes, left, top + rank * step, columns, rows, colour=colour)
            seen = step if rank < tp - 1 else rows  # what the next sheet leaves uncovered
            label = indexed("X", rank) + indexed("A", rank) if tp > 1 else "XA"
            height = top + rank * step + seen / 2
            words(
                axes,
                left + columns / 2,
                height,
                label,
                size=NORMAL if tp <= 4 else SMALL,
                on=colour,
            )
        words(axes, 668, middle - 22, "all-reduce" if tp > 1 else "is", size=SMALL, bold=tp > 1)
        words(axes, 668, middle + 20, "adds" if tp > 1 else "", size=SMALL)
        arrow(axes, (620, middle), (735, middle))
        words(axes, 810, 35, "Y, on every rank")
        _bands(axes, "Y", (745, middle), (columns, rows), 1)
        for centre, shape, cut in ((112, x, True), (310, a, True), (505, y, True), (810, y, False)):
            words(axes, centre, 360, _held(shape, tp if cut else 1))
        words(axes, 450, 402, "Every sheet has the full size of Y. Their sum is Y.")
        alt = (
            f"X, cut into {tp} groups of columns, times A, cut into {tp} groups of rows: "
            f"{_each(tp, 'multiplies X_{0} by A_{0}')}. A rank holds {_by(x)} of X and {_by(a)} of "
            f"A. Each result is a sheet as large as Y, {_by(y)}; an all-reduce adds the sheets, "
            "and then every rank holds the whole Y."
        )
        return Picture(axes, alt if tp > 1 else UNCUT)


def row_bias(tp: int = 4) -> Picture:
    """The bias of a row-parallel layer: wrongly added before the all-reduce, rightly after it."""
    if not 1 <= tp <= 4:
        raise ValueError(f"this picture has room for 1 to 4 ranks, and tp is {tp}")
    with canvas(900, 300) as axes:
        for top, before in ((25, True), (170, False)):
            verdict = "Wrong: bias before the all-reduce" if before else "Right: bias after it"
            words(axes, 20, top, verdict, align="left", bold=True)
            middle = top + 65
            for rank in range(tp):
                label = indexed("X", rank) + indexed("A", rank) + (" + b" if before else "")
                left, width = 20 + rank * 440 / tp, 440 / tp - 8
                colour = rank_colour(rank)
                patch(axes, left, middle - 40, width, 80, label, colour=colour)
            words(axes, 520, middle - 20, "all-reduce", size=SMALL, bold=True)
            arrow(axes, (462, middle), (578, middle))
            total = f"XA + {tp}b" if before else "XA"
            patch(axes, 585, middle - 40, 120, 80, total)
            if not before:
                words(axes, 740, middle - 20, "+ b")
                arrow(axes, (710, middle), (768, middle))
                patch(axes, 775, middle - 40, 110, 80, "XA + b")
        return Picture(
            axes,
            f"Two ways to add the bias b. Wrong: each of {tp} ranks adds b to its partial sum "
            f"before the all-reduce, and the total holds b {tp} times. Right: the partial sums are "
            "added first, every rank then adds b, and the total holds b once.",
        )


def _divides(tp: int) -> None:
    if tp not in (1, 2, 4, 8):
        raise ValueError(f"this picture cuts {INNER} evenly: tp is 1, 2, 4 or 8, not {tp}")


def _bands(
    axes: Axes,
    name: str,
    left_middle: tuple[float, float],
    size: tuple[float, float],
    tp: int,
    *,
    downwards: bool = False,
) -> None:
    """A matrix in `tp` coloured bands, from left to right or downwards; uncut it is neutral."""
    left, middle = left_middle
    width, height = size
    top = middle - height / 2
    if tp == 1:
        patch(axes, left, top, width, height, name, size=LARGE)
        return
    for rank in range(tp):
        across, down = (0.0, height / tp) if downwards else (width / tp, 0.0)
        patch(
            axes,
            left + rank * across,
            top + rank * down,
            across or width,
            down or height,
            indexed(name, rank),
            colour=rank_colour(rank),
            size=LARGE if tp <= 4 else SMALL,
        )


def _cut(name: str, into: str, tp: int) -> str:
    return f"{name}, cut in {into}" if tp > 1 else f"{name}, whole"


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _held(shape: tuple[int, int], pieces: int) -> str:
    """What stands below a matrix: the size of the whole, or of each of its pieces."""
    return _by(shape) if pieces == 1 else f"each {_by(shape)}"


def _each(tp: int, does: str) -> str:
    return f"rank 0 {does.format(0)}, and so on to rank {tp - 1}, which {does.format(tp - 1)}"
