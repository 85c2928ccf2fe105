"""The course on one page, and the key to its pictures."""

from __future__ import annotations

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    HATCHES,
    INK,
    PAPER,
    SMALL,
    canvas,
    patch,
    rank_colour,
    words,
)

PARTS = {
    "Many processes": ["start here", "collectives", "data parallel"],
    "The paper": [
        "split a matmul", "f and g", "parallel MLP", "parallel attention", "transformer layer",
        "vocabulary", "train GPT",
    ],
    "Fit and speed": [
        "counting", "mixed precision", "activation memory", "sequence parallel", "ZeRO",
        "overlap and fusion", "cheaper gradients",
    ],
    "Compose": [
        "pipeline bubble", "pipeline schedules", "three D", "checkpoints", "mixture of experts",
        "long context",
    ],
    "Evidence": [
        "scaling study", "BERT, layer norm", "evaluation", "many machines", "other systems",
        "capstone",
    ],
}  # fmt: skip
"""Part -> its lessons, numbered through from 0; the capstone has no number."""

CORE = (*range(11), 12, 17, 19)
"""The core path. Every other lesson names what it needs and can be skipped."""

KINDS = {
    "F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient",
}  # fmt: skip


def course_map(here: int | None = None) -> Picture:
    """All lessons, part by part, the core path filled; `here` is the number of a lesson to mark."""
    with canvas(900, 560) as axes:
        number = 0
        for row, (part, lessons) in enumerate(PARTS.items()):
            top = 12 + 98 * row
            words(axes, 10, top + 12, part, align="left", bold=True)
            for column, lesson in enumerate(lessons):
                left, colour = 10 + 126 * column, EVERY_RANK if number in CORE else PAPER
                colour = INK if number == here else colour
                patch(axes, left, top + 26, 120, 60, colour=colour)
                first, _, rest = lesson.partition(" ") if len(lesson) > 11 else (lesson, "", "")
                title = "" if lesson == "capstone" else f"{number:02d}"
                for line, text in enumerate((title, first, rest)):
                    words(axes, left + 60, top + 38 + 18 * line, text, size=SMALL, on=colour)
                number += 1
        words(axes, 10, 530, "Filled: the core path. The others can be skipped.", align="left")
        parts = "; ".join(f"{part}: {', '.join(lessons)}" for part, lessons in PARTS.items())
        return Picture(
            axes,
            f"A map of the lessons in {len(PARTS)} rows. {parts}. The {len(CORE)} lessons of "
            f"the core path are filled: {', '.join(f'{lesson:02d}' for lesson in CORE)}.",
        )


def key(ranks: int = 4) -> Picture:
    """What colours and hatches mean in every picture of the course."""
    with canvas(900, 250) as axes:
        words(axes, 10, 22, "Who: a colour for each rank", align="left", bold=True)
        for rank in range(ranks):
            left, colour = 10 + 108 * rank, rank_colour(rank)
            patch(axes, left, 42, 100, 60, f"rank {rank}", colour=colour, size=SMALL)
        patch(axes, 10 + 108 * ranks, 42, 150, 60, "on every rank", size=SMALL)
        words(axes, 10, 142, "What: a hatch for each kind of work", align="left", bold=True)
        for column, (kind, name) in enumerate(KINDS.items()):
            left = 10 + 190 * column
            patch(axes, left, 162, 180, 60, f"{kind}  {name}", hatch=HATCHES[kind], size=SMALL)
        return Picture(
            axes,
            f"The key to all pictures: {ranks} ranks in {ranks} colours, grey for what every rank "
            f"holds; and a hatch for each kind of work: {', '.join(KINDS.values())}.",
        )
