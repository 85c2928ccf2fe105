"""Text goes on in the same way at every split, and only the last position is gathered."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm

CONFIG = mm.GPTConfig(51, 8, hidden_size=16, num_layers=1, num_heads=4, init_std=0.5, dropout=0.5)
PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])


def write(mesh, n, temperature):
    torch.manual_seed(0)
    model = mm.GPT(CONFIG, mesh)
    with mm.ledger() as log:
        tokens = mm.generate(model, PROMPT, n, temperature=temperature, seed=1)
    assert model.training
    return tokens, [r.bytes for r in log.select("all_gather")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_words_come_at_every_split_beyond_the_models_length_too(temperature):
    expected, _ = write(mm.single(), 12, temperature)
    assert expected.shape == (2, 15) and torch.equal(expected[:, :3], PROMPT)
    for tokens, gathered in mm.launch(write, 12, temperature, tp=2):
        assert torch.equal(tokens, expected)
        assert gathered == [2 * 52 * 4] * 12  # batch x padded vocabulary, in float32


def test_greedy_takes_the_likeliest_token_and_temperature_does_not_always():
    model = mm.GPT(CONFIG).eval()
    greedy = mm.generate(model, PROMPT, 1)
    assert torch.equal(greedy[:, -1], model(PROMPT)[:, -1].argmax(-1))
    drawn = {mm.generate(model, PROMPT, 1, 1.0, seed)[0, -1].item() for seed in range(20)}
    assert len(drawn) > 1


def test_an_empty_prompt_or_negative_numbers_are_errors():
    model = mm.GPT(CONFIG)
    assert torch.equal(mm.generate(model, PROMPT, 0), PROMPT)
    with pytest.raises(ValueError, match="seq >= 1"):
        mm.generate(model, torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="n=-1"):
        mm.generate(model, PROMPT, -1)
