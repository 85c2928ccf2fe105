"""How large a GPT is and how much arithmetic one token costs.

The convention is that of "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM" (arXiv:2104.04473, section 5.1): only matrix products count, a multiply and an add are
two operations, the backward pass costs twice the forward, and attention counts all s x s scores
(the causal half that a kernel may skip is not discounted). *Model* FLOPs add nothing for
recomputation: they are what the mathematics asks for, whatever the program does. *Hardware* FLOPs
count what the program does. Divided by time and by the hardware's peak they give MFU and HFU. The
paper's own formula, 96 BsLh^2(...), counts full recomputation, so its "% of peak" is an HFU.
Megatron-LM: `num_floating_point_operations`.
"""

from __future__ import annotations

from typing import NamedTuple

from minimegatron.models.config import GPTConfig


def parameter_count(config: GPTConfig) -> int:
    """The number of parameters, without padding; tied embeddings count once."""
    h, layers = config.hidden_size, config.num_layers
    attention = 4 * h * h + 4 * h
    mlp = 8 * h * h + 5 * h
    layer_norms = 4 * h
    total = (config.vocab_size + config.seq_length) * h + layers * (attention + mlp + layer_norms)
    if config.layer_norm == "pre":
        total += 2 * h  # the final norm; a post-LN layer already ends in one
    if not config.tie_embeddings:
        total += config.vocab_size * h
    return total


def whole_parameters(config: GPTConfig) -> int:
    """The parameters that every tp rank holds: positions, layer norms, the row layers' biases."""
    h, norms = config.hidden_size, 2 if config.layer_norm == "pre" else 0
    return (config.seq_length + 6 * config.num_layers + norms) * h


def parameters_per_rank(config: GPTConfig, tp: int) -> int:
    """The parameters that one of `tp` ranks holds, the padding of its vocabulary included."""
    h, layers = config.hidden_size, config.num_layers
    rows = -(-config.vocab_size // tp) * (1 if config.tie_embeddings else 2)
    return whole_parameters(config) + rows * h + layers * (12 * h * h + 7 * h) // tp


def flops_per_token(config: GPTConfig) -> int:
    """Model FLOPs of one token in a training step, forward and backward, at the full sequence.

    72 L h^2 (1 + s/6h + V/12hL), per token: the layers' matrices, the scores, the head.
    """
    h, layers = config.hidden_size, config.num_layers
    matrices = 72 * layers * h * h
    scores = 12 * layers * config.seq_length * h
    head = 6 * config.vocab_size * h
    return matrices + scores + head


def hardware_flops_per_token(config: GPTConfig) -> int:
    """Model FLOPs, and the forward that `config.recompute` runs again in backward.

    "full": every layer's matrices and scores, 96 BsLh^2 (1 + s/6h + V/16Lh) a batch;
    "selective": the scores and their product with V, a third of the scores' model FLOPs, so
    72 BLsh^2 (1 + 2s/9h + V/12hL). (arXiv:2205.05198 prints s/3h: NVIDIA/Megatron-LM#523.)
    """
    h, layers = config.hidden_size, config.num_layers
    scores = 4 * layers * config.seq_length * h
    again = {None: 0, "selective": scores, "full": 24 * layers * h * h + scores}
    return flops_per_token(config) + again[config.recompute]


class Utilization(NamedTuple):
    """Parts of the hardware's peak: 0.5 is half of it."""

    mfu: float
    hfu: float


def utilization(config: GPTConfig, tokens_per_second: float, peak: float) -> Utilization:
    """MFU and HFU at this speed; `peak` in FLOP/s, of all the hardware that makes these tokens.

    Convention: embedding look-ups, biases and norms count nothing, the head does; no discount for
    the causal mask.
    """
    return Utilization(
        flops_per_token(config) * tokens_per_second / peak,
        hardware_flops_per_token(config) * tokens_per_second / peak,
    )
