"""The oracle of these tests: the same GPT out of torch's own transformer layers, in one process."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

# torch's name of each of our parameters in a layer
TORCH = {
    "ln1": "norm1",
    "attention.qkv.weight": "self_attn.in_proj_weight",
    "attention.qkv.bias": "self_attn.in_proj_bias",
    "attention.out": "self_attn.out_proj",
    "ln2": "norm2",
    "mlp.up": "linear1",
    "mlp.down": "linear2",
}


def torch_name(name):
    for ours, theirs in TORCH.items():
        name = name.replace(f".{ours}", f".{theirs}") if name.startswith("layers.") else name
    return name


class DenseGPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.embedding = nn.ModuleDict(
            {
                "word": nn.Embedding(config.vocab_size, hidden),
                "position": nn.Embedding(config.seq_length, hidden),
            }
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden,
                config.num_heads,
                4 * hidden,
                dropout=0.0,
                activation=partial(F.gelu, approximate="tanh"),
                batch_first=True,
                norm_first=config.layer_norm == "pre",
            )
            for _ in range(config.num_layers)
        )
        if config.layer_norm == "pre":
            self.final_norm = nn.LayerNorm(hidden)
        if not config.tie_embeddings:
            self.head = nn.Linear(hidden, config.vocab_size, bias=False)

    def forward(self, tokens):
        seq = tokens.shape[1]
        x = self.embedding["word"](tokens) + self.embedding["position"](torch.arange(seq))
        mask = nn.Transformer.generate_square_subsequent_mask(seq, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        x = self.final_norm(x) if hasattr(self, "final_norm") else x
        weight = self.head.weight if hasattr(self, "head") else self.embedding["word"].weight
        return F.linear(x, weight)


def dense_run(config, state, tokens, targets):
    """Logits, loss and every gradient, under our names, of the dense model in float64."""
    model = DenseGPT(config).double()
    model.load_state_dict({torch_name(name): value.double() for name, value in state.items()})
    logits = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    gradients = {torch_name(name): p.grad for name, p in model.named_parameters()}
    return logits.detach(), loss.detach(), {name: gradients[torch_name(name)] for name in state}
