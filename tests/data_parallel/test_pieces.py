"""Pieces: what a rank's optimizer updates."""

from __future__ import annotations

import torch

import minimegatron as mm
from minimegatron.data_parallel.pieces import pieces

CONFIG = mm.GPTConfig(vocab_size=19, seq_length=6, hidden_size=16, num_layers=1, num_heads=4)


def test_without_zero_a_piece_is_a_parameter_and_frozen_ones_have_none():
    model = mm.GPT(CONFIG)
    model.embedding.position.weight.requires_grad_(False)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = pieces(model)
    assert [piece.name for piece in found] == list(trained)
    for piece in found:
        p = trained[piece.name]
        assert piece.parameter is p
        assert piece.values.data_ptr() == p.data_ptr()
        assert piece.values.shape == p.shape
        assert not piece.values.requires_grad
        assert piece.gradient is None
    model.loss(torch.ones(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.long)).backward()
    for piece in found:
        assert piece.gradient is piece.parameter.grad
