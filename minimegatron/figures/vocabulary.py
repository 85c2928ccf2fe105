"""The vocabulary split over ranks: a token looked up, the loss's three numbers, what both cost.

arXiv:1909.08053, section 3; Megatron-LM's VocabParallelEmbedding and vocab_parallel_cross_entropy.
A row of the embedding is a token; rank r of n holds the r-th of n equal groups of rows, and the
last group ends in padding where the vocabulary does not divide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ipywidgets

from minimegatron.figures.network import size_name
from minimegatron.figures.picture import Picture
from minimegatron.figures.style import (
    PAPER,
    SMALL,
    arrow,
    canvas,
    indexed,
    patch,
    rank_colour,
    words,
)
from minimegatron.figures.widgets import PictureExplorer

FEATURES = 6  # of the small embedding: that of lesson 08
BATCH, SEQ, HIDDEN = 8, 1024, 1536  # of the costs: a batch of the paper's 1.2B model
FLOAT, TRAINED = 4, 16  # bytes of a float32, and of a parameter in training (lesson 10)
VOCABULARIES = {
    "BERT": 30522,
    "Llama 2": 32000,
    "GPT-2": 50257,
    "Llama 3": 128256,
    "Gemma": 256000,
}


def padded_rows(vocab: int, tp: int, multiple: int = 1) -> int:
    """The smallest multiple of tp * multiple that holds `vocab` rows."""
    return math.ceil(vocab / (tp * multiple)) * tp * multiple


def embedding_rows(vocab: int = 12, tp: int = 4, token: int = 7) -> Picture:
    """The rows of an embedding by rank, and what each rank finds when `token` is looked up.

    Raises ValueError for a `tp` other than 2 and 4, more than 16 rows, or an unknown token.
    """
    if tp not in (2, 4) or not tp <= vocab <= 16 or not 0 <= token < vocab:
        raise ValueError(
            f"this picture has room for 2 or 4 ranks and 16 tokens: not tp={tp}, "
            f"vocab={vocab}, token={token}"
        )
    rows = padded_rows(vocab, tp) // tp
    owner, local = divmod(token, rows)
    top, step, gap = 62, 27, 12
    height = tp * (rows * step + gap) - gap
    middle = top + height / 2
    with canvas(900, round(top + height + 88)) as axes:
        for x, title in (
            (225, "embedding, cut by rows"),
            (515, "what a rank finds"),
            (655, "g: add"),
        ):
            words(axes, x, 30, title, size=SMALL, bold=title == "g: add")
        words(axes, 800, 30, "on every rank", size=SMALL)
        for rank in range(tp):
            start = top + rank * (rows * step + gap)
            centre, colour = start + rows * step / 2, rank_colour(rank)
            words(axes, 20, centre, f"rank {rank}", align="left", size=SMALL)
            for row in range(rows):
                word = rank * rows + row
                label = f"row {row}: token {word}" if word < vocab else f"row {row}: padding"
                ground = colour if word < vocab else PAPER
                patch(
                    axes, 130, start + row * step, 190, step - 2, label, colour=ground, size=SMALL
                )
            found = rank == owner
            label = f"row {local}" if found else "zeros"
            y = start + local * step + step / 2 - 1 if found else centre
            if found:
                arrow(axes, (324, y), (433, centre))
            patch(axes, 440, centre - 17, 150, 34, label, colour=colour if found else PAPER)
            arrow(axes, (596, centre), (714, middle))
        patch(axes, 720, middle - 28, 160, 56, f"token {token}'s vector", size=SMALL)
        sizes = {225: f"each {rows} × {FEATURES}", 515: f"each 1 × {FEATURES}"}
        for x, size in (sizes | {800: f"1 × {FEATURES}"}).items():
            words(axes, x, top + height + 24, size, size=SMALL)
        line = f"{token} is {owner} × {rows} + {local}: rank {owner}, row {local}."
        words(axes, 450, top + height + 62, line)
        padding = padded_rows(vocab, tp) - vocab
        held = f" The last {padding} rows are padding." if padding else ""
        return Picture(
            axes,
            f"An embedding of {vocab} tokens on {tp} ranks, each with {rows} rows of {FEATURES} "
            f"numbers: rank 0 holds tokens 0 to {rows - 1}, and so on.{held} Token {token} is "
            f"looked up: rank {owner} finds its row {local}, every other rank zeros; g adds, and "
            f"every rank has the vector of token {token}.",
        )


def loss_numbers(logits: Sequence[float] = (0, 1, 2, 3), target: int = 3, tp: int = 2) -> Picture:
    """One token's loss from split logits: three numbers a rank, three all-reduces.

    Raises ValueError for a `tp` other than 2 and 4, other than two logits a rank, or a target that
    is none of them.
    """
    if tp not in (2, 4) or len(logits) != 2 * tp or not 0 <= target < len(logits):
        raise ValueError(
            f"this picture has room for 2 or 4 ranks of two logits each: not tp={tp}, "
            f"{len(logits)} logits, target {target}"
        )
    columns, lane, top = 2, 62, 84
    parts = [list(logits[rank * columns : (rank + 1) * columns]) for rank in range(tp)]
    largest = max(logits)
    sums = [sum(math.exp(z - largest) for z in part) for part in parts]
    owner = target // columns
    picked = [logits[target] - largest if rank == owner else 0.0 for rank in range(tp)]
    numbers = (
        ("maximum M", "max", [float(max(part)) for part in parts], float(largest)),
        ("target’s logit − M", "add", picked, sum(picked)),
        ("sum of exp(logit − M)", "add", sums, sum(sums)),
    )
    loss = math.log(sum(sums)) - sum(picked)
    below = top + lane * tp
    with canvas(900, below + 144) as axes:
        words(axes, 157, 30, f"logits, target t = {target}", size=SMALL)
        for rank, part in enumerate(parts):
            y = top + lane * rank
            words(axes, 14, y + 22, f"rank {rank}", align="left", size=SMALL)
            for i, logit in enumerate(part):
                label = f"{logit:g}  (t)" if rank * columns + i == target else f"{logit:g}"
                patch(axes, 84 + 75 * i, y, 71, 44, label, colour=rank_colour(rank), size=SMALL)
        for column, (name, op, values, total) in enumerate(numbers):
            x = 350 + 215 * column
            words(axes, x, 30, name, size=SMALL)
            words(axes, x, 56, f"all-reduce: {op}", size=SMALL, bold=True)
            for rank, value in enumerate(values):
                y = top + lane * rank
                shown = _number(value) if column != 1 or rank == owner else "elsewhere: 0"
                patch(axes, x - 75, y, 150, 44, shown, colour=rank_colour(rank), size=SMALL)
            arrow(axes, (x, below - 14), (x, below + 20))
            patch(axes, x - 75, below + 24, 150, 44, _number(total), size=SMALL)
        words(axes, 14, below + 46, "every rank", align="left", size=SMALL)
        line = f"loss = log {_number(sum(sums))} − {_signed(sum(picked))} = {loss:.4f}"
        words(axes, 450, below + 118, line, bold=True)
        each = "; ".join(
            f"{name}: {', '.join(_number(v) for v in values)}, together ({op}) {_number(total)}"
            for name, op, values, total in numbers
        )
        row = ", ".join(f"{z:g}" for z in logits)
        return Picture(
            axes,
            f"The logits {row} of one token, {columns} on each of {tp} ranks, and the target "
            f"{target}, on rank {owner}. Three numbers a rank, each all-reduced. {each}. "
            f"On every rank: {line}.",
        )


def _number(value: float) -> str:
    return f"{float(f'{value:.4g}'):g}"


def _signed(value: float) -> str:
    return f"({_number(value)})" if value < 0 else _number(value)


def vocabulary_cost(vocab: int = 50257, tp: int = 8, multiple: int = 128) -> Picture:
    """Rows of padding and their bytes; the bytes of gathered logits and of the three numbers.

    `multiple` divides each rank's rows. Raises ValueError for a `tp` below 2.
    """
    if tp < 2:
        raise ValueError(f"nothing is gathered on one rank: tp is at least 2, not {tp}")
    total = padded_rows(vocab, tp, multiple)
    padding, tokens = total - vocab, BATCH * SEQ
    memory = padding * HIDDEN * TRAINED
    gathered, three = tokens * total * FLOAT, 3 * tokens * FLOAT
    longest = tokens * max(total, *VOCABULARIES.values()) * FLOAT  # one scale for all of them
    rows = f"{vocab:,} tokens + {padding:,} of padding = {total:,} = {tp} × {total // tp:,}"
    kept = f"{padding / total:.2%} padding, {size_name(memory) if memory else 'no bytes'}"
    with canvas(900, 372) as axes:
        words(axes, 30, 30, f"Rows: {rows}", align="left")
        for rank in range(tp):
            label = indexed("E", rank) if tp <= 16 else ""
            patch(axes, 30 + 840 * rank / tp, 54, 840 / tp, 56, label, colour=rank_colour(rank))
        if padding:
            patch(axes, 30 + 840 * vocab / total, 54, 840 * padding / total, 56, colour=PAPER)
        detail = f"{kept} in training at hidden {HIDDEN:,}, {TRAINED} bytes a number"
        words(axes, 30, 136, detail, align="left", size=SMALL)
        title = f"Forward, batch {BATCH} × {SEQ:,}, {FLOAT} bytes a logit:"
        words(axes, 30, 192, title, align="left")
        messages = (("gather the logits", gathered), ("three numbers a token", three))
        for line, (name, size) in enumerate(messages):
            y = 218 + 48 * line
            words(axes, 30, y + 17, name, align="left", size=SMALL)
            length = 470 * size / longest
            patch(axes, 250, y, length, 34)
            words(axes, 262 + length, y + 17, size_name(size), align="left", size=SMALL)
        ratio = f"{gathered / three:,.0f} times fewer bytes"
        words(axes, 30, 340, f"The three numbers are {ratio}.", align="left", bold=True)
        return Picture(
            axes,
            f"A vocabulary on {tp} ranks, padded to a multiple of {tp * multiple:,}: {rows}; "
            f"{detail}. {title} gathering the logits moves {size_name(gathered)}, three numbers a "
            f"token {size_name(three)}, {ratio}.",
        )


def explore_vocabulary() -> PictureExplorer:
    """Sliders for vocabulary, tp and what a rank's rows must divide by, above their costs."""
    return PictureExplorer(
        vocabulary_cost,
        vocab=ipywidgets.SelectionSlider(
            options=list(VOCABULARIES.items()), value=50257, description="vocabulary"
        ),
        tp=ipywidgets.SelectionSlider(options=(2, 4, 8), value=8, description="tp"),
        multiple=ipywidgets.SelectionSlider(
            options=(1, 64, 128, 1024), value=128, description="multiple"
        ),
    )
