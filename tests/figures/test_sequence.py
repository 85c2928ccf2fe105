from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from minimegatron import figures


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("tp", [2, 4])
def test_the_opened_all_reduce_sends_twice_and_works_on_a_part(tp: int, drawn: list[Axes]) -> None:
    figures.open_all_reduce(tp)
    found = texts(drawn[0])
    assert [found.count(f"work on {size} tokens") for size in ("s", f"s/{tp}")] == [tp, tp]
    for deed in ("all-reduce", "nothing to send", "reduce-scatter", "all-gather"):
        assert found.count(deed) == 1
    assert len(drawn[0].lines) == 3 * tp * tp + tp, "each to each three times, straight on once"


def test_only_sequence_parallelism_cuts_what_stands_outside_the_lanes(drawn: list[Axes]) -> None:
    figures.sequence_regions(sequence_parallel=False)
    figures.sequence_regions()
    plain, cut = map(texts, drawn)
    for outside in ("LayerNorm", "+ bias", "dropout", "+"):
        assert (plain.count(outside), cut.count(outside)) == (2, 4)
    assert plain.count("whole") == cut.count("sequence-parallel") == 4
    assert plain.count("tensor-parallel") == cut.count("tensor-parallel") == 2
    assert {"f: copy", "g: all-reduce"} <= {*plain}
    assert {"g: all-gather", "ḡ: reduce-scatter"} <= {*cut}
    assert "s/2 tokens" not in plain


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_words_name_the_operators(sequence_parallel: bool) -> None:
    alt = figures.sequence_regions(sequence_parallel).alt
    assert ("reduce-scatter" in alt) == sequence_parallel
    assert ("all-reduce" in alt) != sequence_parallel


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="tp is 5"):
        figures.open_all_reduce(5)
