"""Text from a model, one token after another.

The logits of the last position are the only ones that are ever gathered: (batch, vocabulary)
numbers a token, against (batch, seq, vocabulary) for a forward pass. Every rank then picks the
same token, for each has the same logits and the same generator. Megatron-LM:
`megatron/core/inference/text_generation_controllers`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import broadcast, recv, send
from minimegatron.tensor_parallel.operators import gather
from minimegatron.tensor_parallel.shards import padded


@torch.no_grad()
def generate(model: GPT, tokens: Tensor, n: int, temperature: float = 0.0, seed: int = 0) -> Tensor:
    """Tokens (batch, seq) and `n` more: (batch, seq + n), the same on every tp rank.

    `temperature` 0 takes the likeliest token, more draws from softmax(logits / temperature) with
    `seed`. The model sees the last `seq_length` tokens. Raises ValueError for an empty prompt or a
    negative `n` or `temperature`.
    """
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(f"a prompt has the shape (batch, seq >= 1), not {tuple(tokens.shape)}")
    if n < 0 or temperature < 0:
        raise ValueError(f"n={n} and temperature={temperature} must not be negative")
    generator = torch.Generator(tokens.device).manual_seed(seed)
    training, tp = model.training, model.mesh.tp
    model.eval()
    try:
        for _ in range(n):
            window = tokens[:, -model.config.seq_length :]
            # Sequence parallelism cuts equal parts; what is to the right changes nothing before it.
            fill = -window.shape[1] % tp.size if model.config.sequence_parallel else 0
            last = _logits(model, F.pad(window, (0, fill)))[:, window.shape[1] - 1]
            logits = gather(last, tp)[:, : model.config.vocab_size]
            if temperature:
                chances = (logits.float() / temperature).softmax(-1)
                token = chances.multinomial(1, generator=generator)
            else:
                token = logits.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, token], 1)
    finally:
        model.train(training)
    return tokens


def _logits(model: GPT, tokens: Tensor) -> Tensor:
    """The model's logits on every rank; in a pipeline each stage waits for the one before."""
    axis = model.mesh.pp
    if axis.size == 1:
        return model(tokens)
    x = tokens
    for number in range(len(model.layers_of)):
        before, owner = (number - 1) % axis.size, number % axis.size
        if number and axis.rank == before:
            send(x, axis, owner)
        if axis.rank == owner:
            x = recv(model.activations(tokens), axis, before) if number else tokens
            x = model.stage(number // axis.size, x)
    if axis.rank < axis.size - 1:
        columns = padded(model.config.vocab_size, model.mesh.tp) // model.mesh.tp.size
        x = model.activations(tokens).new_empty(*tokens.shape, columns)
    return broadcast(x, axis, axis.size - 1)
