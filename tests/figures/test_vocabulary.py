from __future__ import annotations

import base64
import math
import re
import time

import pytest
import torch
from matplotlib.axes import Axes
from torch.nn.functional import cross_entropy

from minimegatron import figures
from minimegatron.figures.vocabulary import padded_rows


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("vocab", "tp"), [(12, 4), (10, 4), (12, 2), (5, 4), (16, 2)])
def test_a_token_is_found_where_torch_chunks_the_padded_rows(
    vocab: int, tp: int, drawn: list[Axes]
) -> None:
    rows = math.ceil(vocab / tp)
    chunks = torch.arange(rows * tp).chunk(tp)
    for token in (0, rows - 1, rows, vocab - 1):
        alt = figures.embedding_rows(vocab, tp, token).alt
        (owner,) = [rank for rank, chunk in enumerate(chunks) if token in chunk]
        local = chunks[owner].tolist().index(token)
        assert f"rank {owner} finds its row {local}, every other rank zeros" in alt
        found = labels(drawn[-1])
        assert found.count("zeros") == tp - 1 and found.count(f"row {local}") == 1
        assert sum("padding" in label for label in found) == rows * tp - vocab
        assert sum(": token" in label for label in found) == vocab


@pytest.mark.parametrize(
    ("logits", "target", "tp"),
    [((0, 1, 2, 3), 3, 2), ((0, 1, 2, 3), 1, 2), ((2, -1, 0, 5, 1, 1, 3, -2), 1, 4)],
)
def test_the_three_numbers_make_torchs_loss(
    logits: tuple[float, ...], target: int, tp: int, drawn: list[Axes]
) -> None:
    alt = figures.loss_numbers(logits, target, tp).alt
    loss = cross_entropy(torch.tensor(logits).double(), torch.tensor(target)).item()
    assert alt.endswith(f"= {loss:.4f}.")
    assert labels(drawn[0]).count("elsewhere: 0") == tp - 1
    assert [label for label in labels(drawn[0]) if "(t)" in label] == [f"{logits[target]}  (t)"]
    total = torch.tensor(logits).double().sub(max(logits)).exp().sum().item()
    shown = re.findall(r"together \(\w+\) (-?[\d.]*\d)", alt)
    assert [float(n) for n in shown] == pytest.approx(
        [max(logits), logits[target] - max(logits), total], rel=1e-3
    )


def test_the_papers_padding_of_gpt_2_and_the_bytes_of_both_ways() -> None:
    alt = figures.vocabulary_cost(50257, tp=8, multiple=128).alt
    assert "943 of padding = 51,200 = 8 × 6,400" in alt  # arXiv:1909.08053, section 4
    assert f"{51200 / 3:,.0f} times fewer bytes" in alt
    none = figures.vocabulary_cost(256000, tp=8, multiple=128).alt
    assert "+ 0 of padding" in none and "no bytes" in none


@pytest.mark.parametrize("multiple", [1, 7, 128])
def test_padding_is_the_least_that_divides(multiple: int) -> None:
    for vocab in (1, 30, 127, 128, 50257):
        for tp in (2, 4, 8):
            total = padded_rows(vocab, tp, multiple)
            assert total % tp == 0 and total // tp % multiple == 0
            assert 0 <= total - vocab < tp * multiple


def test_what_has_no_room_is_refused() -> None:
    for vocab, tp, token in ((12, 3, 0), (17, 4, 0), (12, 4, 12), (3, 4, 0)):
        with pytest.raises(ValueError, match=f"not tp={tp}, vocab={vocab}, token={token}"):
            figures.embedding_rows(vocab, tp, token)
    for logits, target, tp in (((1, 2, 3), 0, 2), ((0, 1, 2, 3), 4, 2), ((0, 1, 2, 3), 0, 4)):
        with pytest.raises(ValueError, match=f"tp={tp}, {len(logits)} logits, target {target}"):
            figures.loss_numbers(logits, target, tp)
    with pytest.raises(ValueError, match="not 1"):
        figures.vocabulary_cost(50257, tp=1)


def test_moving_a_slider_draws_the_costs_again_in_time() -> None:
    explorer = figures.explore_vocabulary()
    data, _ = explorer._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == figures.vocabulary_cost().png
    seconds = []
    for vocab in (30522, 32000, 128256, 256000, 50257):
        start = time.process_time()
        explorer.controls["vocab"].value = vocab
        seconds.append(time.process_time() - start)
        assert explorer.picture.value == figures.vocabulary_cost(vocab).html()
    assert sorted(seconds)[2] < 0.2
