"""The MLP Z = GELU(XA)B in the four orders of cutting A and B, and where its ranks must meet.

arXiv:1909.08053, section 3 and figure 3a, which is the order "column-row"; Megatron-LM's MLP in
`megatron/core/transformer/mlp.py`. X is (tokens, hidden), the hidden activation H = GELU(XA) four
times as wide. A bar across the lanes is a message: plain forward, hatched backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    HATCHES,
    PAPER,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)

TOKENS, HIDDEN, INNER = 6, 8, 32  # the sizes of lesson 05
LANE, TOP = 58, 78  # a rank's lane and where the first one begins, in pixels
BOX, STEP = 96, 194  # width of a tensor, and from one tensor to the next
NOTHING = "–"


@dataclass(frozen=True)
class Tensor:
    """`name` has a _ for each rank's index; `state` is whole (alike on every rank), cut, sheets."""

    name: str
    state: str
    width: int


@dataclass(frozen=True)
class Meeting:
    """What stands between two tensors, and what it sends each way: "all-reduce 6 × 8" or ""."""

    does: str
    forward: str = ""
    backward: str = ""


def mlp_order(order: str = "column-row", tp: int = 2) -> Picture:
    """The MLP with A and B cut as `order` says: "column-row", "row-row" and so on.

    Raises ValueError for another order, and for a `tp` other than 2 or 4.
    """
    cuts = order.split("-")
    if len(cuts) != 2 or not set(cuts) <= {"column", "row"}:
        raise ValueError(f"an order is column-row, column-column, row-row or row-column: {order!r}")
    if tp not in (2, 4):
        raise ValueError(f"this picture has room for 2 or 4 ranks, and tp is {tp}")
    tensors, meetings = _tensors(cuts, tp), _meetings(cuts)
    bottom = TOP + LANE * tp
    with canvas(900, bottom + 118) as axes:
        for column, tensor in enumerate(tensors):
            _tensor(axes, 14 + STEP * column, tensor, tp)
        for column, meeting in enumerate(meetings):
            _meeting(axes, 14 + BOX + STEP * column, meeting, tp)
        for label, hatch, y in (("forward", HATCHES["F"], 32), ("backward", HATCHES["B"], 84)):
            patch(axes, 4, bottom + y - 14, 10, 28, colour=PAPER, hatch=hatch)
            words(axes, 20, bottom + y, label, align="left", size=SMALL)
        return Picture(axes, _alt(order, tensors, meetings, tp))


def _tensors(cuts: list[str], tp: int) -> list[Tensor]:
    first = {"column": Tensor("XA_", "cut", INNER // tp), "row": Tensor("X_A_", "sheets", INNER)}
    hidden = {"column": Tensor("H", "whole", INNER), "row": Tensor("H_", "cut", INNER // tp)}
    second = {"column": Tensor("HB_", "cut", HIDDEN // tp), "row": Tensor("H_B_", "sheets", HIDDEN)}
    up, down = cuts
    x, z = Tensor("X", "whole", HIDDEN), Tensor("Z", "whole", HIDDEN)
    return [x, first[up], hidden[down], second[down], z]


def _meetings(cuts: list[str]) -> list[Meeting]:
    narrow, wide = f"{TOKENS} × {HIDDEN}", f"{TOKENS} × {INNER}"
    reduce_wide, gather_wide = f"all-reduce {wide}", f"all-gather {wide}"
    before = {
        "column": Meeting("f\n× A", backward=f"all-reduce {narrow}"),
        "row": Meeting("scatter\n× A", backward=f"all-gather {narrow}"),
    }
    between = {
        "column-row": Meeting("GELU"),
        "column-column": Meeting("GELU\ngather, f", gather_wide, reduce_wide),
        "row-row": Meeting("g, GELU\nscatter", reduce_wide, gather_wide),
        "row-column": Meeting("g, GELU\nf", reduce_wide, reduce_wide),
    }
    after = {
        "column": Meeting("gather", f"all-gather {narrow}"),
        "row": Meeting("g", f"all-reduce {narrow}"),
    }
    return [before[cuts[0]], between["-".join(cuts)], Meeting("× B"), after[cuts[1]]]


def _tensor(axes: Axes, left: float, tensor: Tensor, tp: int) -> None:
    """One tensor in every lane: in the rank's colour, or neutral where all ranks hold the same."""
    words(axes, left + BOX / 2, TOP - 22, tensor.state, size=SMALL)
    for rank in range(tp):
        name = tensor.name.replace("_", indexed("", rank))
        label = f"{name}\n{TOKENS} × {tensor.width}"
        colour = EVERY_RANK if tensor.state == "whole" else rank_colour(rank)
        patch(axes, left, TOP + LANE * rank, BOX, LANE - 8, label, colour=colour, size=SMALL)


def _meeting(axes: Axes, left: float, meeting: Meeting, tp: int) -> None:
    """The work between two tensors, a bar for each message, and the messages below the lanes."""
    middle, height = left + (STEP - BOX) / 2, LANE * tp
    words(axes, middle, 38, meeting.does, size=SMALL, bold=meeting.does != "GELU")
    for rank in range(tp):
        y = TOP + LANE * rank + (LANE - 8) / 2
        arrow(axes, (left + 3, y), (left + STEP - BOX - 3, y))
    sends = (("F", -9, 32, meeting.forward), ("B", 9, 84, meeting.backward))
    for kind, across, y, message in sends:
        if message:
            x = middle + (across if meeting.forward and meeting.backward else 0)
            patch(axes, x - 6, TOP - 4, 12, height, colour=PAPER, hatch=HATCHES[kind])
        lines = message.replace(" ", "\n", 1) if message else NOTHING
        words(axes, middle, TOP + height + y, lines, size=SMALL, bold=bool(message))


def _alt(order: str, tensors: list[Tensor], meetings: list[Meeting], tp: int) -> str:
    """The row of tensors with the work between them, then what is sent each way."""
    row = f"{tensors[0].name}, {tensors[0].state}"
    for meeting, tensor in zip(meetings, tensors[1:], strict=True):
        name = tensor.name.replace("_", "_r")
        work = meeting.does.replace("\n", ", ")
        row += f"; {work}; {name}, {TOKENS} × {tensor.width}, {tensor.state}"
    ways = (
        ("Forward", [m.forward for m in meetings if m.forward]),
        ("Backward", [m.backward for m in reversed(meetings) if m.backward]),
    )
    sent = " ".join(f"{way} sends: {', then '.join(messages)}." for way, messages in ways)
    return f"The MLP in the order {order}, on {tp} ranks r: {row}. {sent}"
