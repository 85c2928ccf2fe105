"""How large a GPT is and how much arithmetic one token costs.

The convention is that of "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM" (arXiv:2104.04473, section 5.1): only matrix products count, a multiply and an add are
two operations, the backward pass costs twice the forward, attention counts all s x s scores (the
causal half that a kernel may skip is not discounted), and nothing is added for recomputation. These
are *model* FLOPs: what the mathematics asks for, whatever the program does. Megatron-LM computes
them in `num_floating_point_operations`.
"""

from __future__ import annotations

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


def flops_per_token(config: GPTConfig) -> int:
    """Model FLOPs of one token in a training step, forward and backward, at the full sequence.

    72 L h^2 (1 + s/6h + V/12hL), per token: the layers' matrices, the scores, the head.
    """
    h, layers = config.hidden_size, config.num_layers
    matrices = 72 * layers * h * h
    scores = 12 * layers * config.seq_length * h
    head = 6 * config.vocab_size * h
    return matrices + scores + head
