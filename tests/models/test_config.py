"""A configuration that makes no model is an error that names the value."""

from __future__ import annotations

import pytest

import minimegatron as mm

GOOD = {"vocab_size": 51, "seq_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "16.*3"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_layers": 1.5}, "num_layers=1.5"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"init_std": -1.0}, "init_std=-1.0"),
        ({"layer_norm": "middle"}, "layer_norm='middle'.*pre.*post"),
        ({"attention": "flash"}, "attention='flash'"),
        ({"recompute": "some"}, "recompute='some'"),
    ],
)
def test_a_bad_value_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        mm.GPTConfig(**(GOOD | change))


def test_positions_and_defaults_are_those_of_the_course():
    config = mm.GPTConfig(51, 12, 16, 2, 4)
    assert config == mm.GPTConfig(**GOOD)
    assert (config.dropout, config.layer_norm, config.tie_embeddings) == (0.0, "pre", True)
    assert (config.init_std, config.attention) == (0.02, "sdpa")
    assert (config.sequence_parallel, config.recompute) == (False, None)
