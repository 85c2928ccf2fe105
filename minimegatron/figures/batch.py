"""A batch cut over ranks, and what its size does: the pictures of data parallelism.

Every rank holds the whole model and has other sequences; an all-reduce turns the ranks' gradients
into one. Megatron-LM: `DistributedDataParallel`. How many steps a larger batch saves: "An Empirical
Model of Large-Batch Training", arXiv:1812.06162, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    HATCHES,
    INK,
    NORMAL,
    PAPER,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)


def split_batch(dp: int = 4, batch: int = 16, parameters: int = 161) -> Picture:
    """A batch of `batch` rows over `dp` copies of a model; their gradients become one mean."""
    if not 1 <= dp <= 4 or batch % dp:
        raise ValueError(f"this picture has 1 to 4 ranks that divide the batch: dp={dp}, {batch}")
    lane, top = 62, 70
    bottom, middle = top + lane * dp, top + lane * dp / 2
    with canvas(900, bottom + 110) as axes:
        heads = ((75, "batch"), (270, "a copy of the model"), (475, "gradients"), (800, "mean"))
        for x, head in heads:
            words(axes, x, 30, head, bold=True)
        for rank in range(dp):
            y, colour = top + lane * rank, rank_colour(rank)
            patch(axes, 15, y, 120, lane, indexed("x", rank), colour=colour)
            arrow(axes, (140, y + lane / 2), (195, y + lane / 2))
            patch(axes, 200, y + 4, 140, lane - 8, f"on rank {rank}", size=SMALL)
            arrow(axes, (345, y + lane / 2), (400, y + lane / 2))
            name, hatch = indexed("∇L", rank), HATCHES["B"]
            patch(axes, 405, y + 4, 140, lane - 8, name, colour=colour, hatch=hatch)
            arrow(axes, (550, y + lane / 2), (722, middle))
        words(axes, 640, top - 12, "all-reduce", bold=True, size=SMALL)
        words(axes, 660, bottom + 8, f"adds, then / {dp}", size=SMALL)
        patch(axes, 730, middle - 34, 140, 68, "∇L", hatch=HATCHES["B"], size=NORMAL)
        sizes = ((75, f"each {batch // dp} rows"), (475, f"each {parameters} numbers"))
        for x, text in (*sizes, (800, "on every rank")):
            words(axes, x, bottom + 32, text, size=SMALL)
        words(axes, 450, bottom + 80, "Rows stay where they are. Only gradients are sent.")
        return Picture(
            axes,
            f"A batch of {batch} rows, cut in {dp} parts of {batch // dp}, one for each rank. "
            f"Every rank holds a copy of the whole model and makes {parameters} numbers of "
            f"gradient from its own rows. An all-reduce adds the gradients; divided by {dp} they "
            "are the mean, on every rank. Only gradients are sent.",
        )


def token_weights(counts: Sequence[int] = (8, 2)) -> Picture:
    """What each token weighs in the mean over tokens, and in the mean of the ranks' means.

    `counts[r]` is the number of real tokens on rank r. A token is as wide as its weight.
    """
    total, ranks = sum(counts), len(counts)
    if not (2 <= ranks <= 4 and min(counts) >= 1 and ranks * max(counts) <= 20):
        raise ValueError(f"2 to 4 ranks of a few tokens each have room here, not {counts}")
    over_tokens = [Fraction(1, total)] * ranks
    of_means = [Fraction(1, ranks * count) for count in counts]
    with canvas(900, 310) as axes:
        rows = (("Mean over all tokens", over_tokens), ("Mean of the ranks' means", of_means))
        for top, (title, weights) in zip((20, 155), rows, strict=True):
            words(axes, 20, top + 12, f"{title}:", align="left", bold=True)
            left = 20.0
            for rank, (count, weight) in enumerate(zip(counts, weights, strict=True)):
                width, colour = 860 * float(weight), rank_colour(rank)
                for token in range(count):
                    x = left + width * token
                    patch(axes, x, top + 32, width, 48, str(weight), colour=colour, size=SMALL)
                centre = left + width * count / 2
                share = count * weight
                words(axes, centre, top + 98, f"rank {rank}: {share}", size=SMALL)
                left += width * count
        words(
            axes,
            450,
            290,
            "A token is as wide as its weight. Below: the weight of all tokens of a rank.",
            size=SMALL,
        )
        each = [f"1/{total}", *(f"{w} on rank {r}" for r, w in enumerate(of_means))]
        return Picture(
            axes,
            f"{total} tokens, {', '.join(f'{n} on rank {r}' for r, n in enumerate(counts))}. "
            f"In the mean over all tokens each weighs {each[0]}. In the mean of the ranks' means "
            f"a token weighs {', '.join(each[1:])}.",
        )


LEFT, RIGHT, TOP, BOTTOM = 90.0, 720.0, 60.0, 330.0  # of the frame, in pixels


def steps_against_batch(steps: Mapping[int, int], least: int) -> Picture:
    """Steps to a target against the batch size (powers of two), both axes logarithmic.

    `least` is how many steps an endless batch takes, one without noise.
    """
    if len(steps) < 2 or min(steps.values()) < 1 or least < 1:
        raise ValueError("steps_against_batch draws two points or more, none below one step")
    first, last = min(steps), max(steps)
    highest, lowest = steps[first] * 2.0, least / 1.6

    def across(batch: float) -> float:
        return LEFT + 20 + (RIGHT - LEFT - 70) * math.log(batch / first) / math.log(last / first)

    def down(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * math.log(value / lowest) / math.log(highest / lowest)

    with canvas(900, 395) as axes:
        words(axes, 20, 28, "Steps to reach the target", align="left", bold=True)
        patch(axes, LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, colour=PAPER)
        ends = [first, first * steps[first] / lowest]  # where the ideal leaves the frame
        axes.plot([across(b) for b in ends], [down(steps[first] * first / b) for b in ends],
                  color=INK, linewidth=1.5, linestyle=(0, (6, 3)))  # fmt: skip
        axes.plot([LEFT, RIGHT], [down(least)] * 2, color=INK, linestyle=(0, (1.5, 2)))
        axes.plot([across(b) for b in steps], [down(s) for s in steps.values()], "o-",
                  color=INK, linewidth=2, markerfacecolor=EVERY_RANK, markersize=8)  # fmt: skip
        for batch, value in steps.items():
            words(axes, across(batch), BOTTOM + 20, str(batch), size=SMALL)
            words(axes, across(batch) + 10, down(value) - 16, str(value), align="left", size=SMALL)
        words(axes, (LEFT + RIGHT) / 2, BOTTOM + 48, "batch size")
        words(axes, RIGHT + 8, down(least) - 12, "no noise at all:", align="left", size=SMALL)
        words(axes, RIGHT + 8, down(least) + 10, f"{least} steps", align="left", size=SMALL)
        half = "dashed: twice the batch, half the steps"
        words(axes, RIGHT - 12, TOP + 20, half, align="right", size=SMALL)
        return Picture(
            axes,
            f"Steps to reach a target against the batch size, both axes logarithmic: from "
            f"{steps[first]:,} steps at batch {first} to {steps[last]:,} at batch {last:,}. The "
            "points first follow a dashed line, twice the batch, half the steps; then they bend "
            f"and level off near a dotted line, the {least} steps that a gradient without noise "
            "takes.",
        )
