from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


def words(axes: Axes) -> list[tuple[str, float, float]]:
    return [(text.get_text(), *text.get_position()) for text in axes.texts]


@pytest.mark.parametrize("tp", [2, 4])
def test_the_lanes_hold_every_head_once_and_a_part_of_the_mlp_each(
    tp: int, drawn: list[Axes]
) -> None:
    figures.transformer_layer(tp)
    texts = [text for text, *_ in words(drawn[0])]
    lanes = [text.split(":")[0].removeprefix("heads").removeprefix("head") for text in texts]
    heads = [head for lane in lanes for head in lane.split(",") if head.strip().isdigit()]
    assert [int(head) for head in heads] == [0, 1, 2, 3]
    assert sum("GELU" in text for text in texts) == tp
    assert sum(text.endswith(f"4h/{tp}") for text in texts) == tp


def test_layer_norm_stands_before_f_or_behind_the_sum(drawn: list[Axes]) -> None:
    for layer_norm in ("pre", "post"):
        figures.transformer_layer(2, layer_norm)
        at = words(drawn[-1])
        for x_of_norm, x_of_sum in zip(
            [x for text, x, _ in at if text == "LayerNorm"],
            [x for text, x, _ in at if text == "+"],
            strict=True,
        ):
            assert (x_of_norm < x_of_sum) == (layer_norm == "pre")


def test_each_dropout_names_its_stream(drawn: list[Axes]) -> None:
    figures.transformer_layer(2, dropout=True)
    texts = [text for text, *_ in words(drawn[0])]
    assert texts.count("weights'\ndropout") == 2, "in each lane of attention"
    assert texts.count("dropout") == 2, "behind each bias"
    assert texts.count("different") == 1 and texts.count("same") == 2
    assert "different" in figures.transformer_layer(2, dropout=True).alt
    assert "dropout" not in figures.transformer_layer(2).alt.lower()


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="tp is 3"):
        figures.transformer_layer(3)
    with pytest.raises(ValueError, match="'middle'"):
        figures.transformer_layer(2, "middle")
