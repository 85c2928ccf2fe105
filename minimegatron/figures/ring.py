"""An all-reduce on ranks that form a ring, step by step.

The tensor is cut into as many pieces as there are ranks, and in every step each rank sends one
piece to the next rank. A reduce-scatter finishes one piece on every rank, an all-gather passes the
finished pieces on: (n-1)/n of the tensor each. Source: NVIDIA nccl-tests, PERFORMANCE.md; NCCL's
ring, under Megatron-LM's all-reduces.
"""

from __future__ import annotations

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    EVERY_RANK,
    NORMAL,
    SMALL,
    arrow,
    canvas,
    patch,
    rank_colour,
    words,
)

Terms = list[list[int]]  # [rank][piece] -> how many ranks' values are added up in it
HEIGHT = 34  # of a piece, in pixels


def ring_all_reduce(tp: int = 4) -> Picture:
    """What every rank holds, from its own tensor to the sum: reduce-scatter, then all-gather."""
    if not 2 <= tp <= 4:
        raise ValueError(f"this picture has room for 2 to 4 ranks, and tp is {tp}")
    states = _states(tp)
    pitch = min(820 / len(states), 200)  # from one grid to the next
    width = min((pitch - 20) / tp, 44)  # of a piece
    with canvas(900, 165 + HEIGHT * tp) as axes:
        top, bottom = 82, 82 + HEIGHT * tp
        for rank in range(tp):
            words(axes, 8, top + HEIGHT * (rank + 0.5), f"rank {rank}", align="left", size=SMALL)
        for step, terms in enumerate(states):
            left = 78 + pitch * step
            title = f"step {step}" if step else "start"
            words(axes, left + width * tp / 2, top - 18, title, size=SMALL)
            for rank, row in enumerate(terms):
                for piece, count in enumerate(row):
                    colour = EVERY_RANK if count == tp else rank_colour(rank)
                    x, y = left + width * piece, top + HEIGHT * rank
                    patch(axes, x, y, width, HEIGHT, colour=colour)
                    came = step > 0 and states[step - 1][rank][piece] != count
                    at = (x + width / 2, y + HEIGHT / 2)
                    words(axes, *at, str(count), on=colour, bold=came, size=NORMAL)
        for first, name in ((1, "reduce-scatter"), (tp, "all-gather")):
            start, end = 78 + pitch * first, 78 + pitch * (first + tp - 2) + width * tp
            words(axes, (start + end) / 2, 22, name, bold=True)
            arrow(axes, (start, 43), (end, 43))
        last = f"rank {tp - 1} to rank 0"
        lines = (
            f"Each step, every rank sends one of its {tp} pieces to the next rank, {last}.",
            f"Number: how many ranks' values are added up; {tp}: the sum. Bold: just arrived.",
        )
        for line, text in enumerate(lines):
            words(axes, 450, bottom + 28 + 26 * line, text, size=SMALL)
        return Picture(
            axes,
            f"A ring of {tp} ranks, each with a tensor of {tp} pieces. In every step each rank "
            f"sends one piece to the next rank, {last}. In the first half of the {2 * tp - 2} "
            "steps, the reduce-scatter, the piece that arrives is added, until every rank r holds "
            "piece r of the sum; in the second half, the all-gather, the finished pieces are "
            f"passed on, until every rank holds all {tp}.",
        )


def _states(tp: int) -> list[Terms]:
    """What every rank holds at the start and after each of the 2 (tp - 1) steps."""
    states = [[[1] * tp for _ in range(tp)]]
    for step in range(2 * (tp - 1)):
        before, after = states[-1], [list(row) for row in states[-1]]
        for rank in range(tp):
            piece = (rank - 2 - step) % tp  # sent by the rank before, which has just got it
            sent = before[rank - 1][piece]
            after[rank][piece] = sent + before[rank][piece] if step < tp - 1 else sent
        states.append(after)
    return states
