"""The oracle: a GPT and its training in one process, as plain functions of a dense state dict.

Everything parallel is compared with this file, so it shares no code with the package (it imports
torch alone), knows nothing of ranks, shards, padding, buckets or micro-batches, and is written the
most direct way. What it proves is only as good as what it says: read it beside the paper's Fig. 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Masks = dict[str, Tensor]


@dataclass
class Step:
    """What one step of training computes: the gradients, and the parameters after the update."""

    loss: Tensor
    logits: Tensor
    gradients: State
    grad_norm: Tensor
    parameters: State


def dropout(x: Tensor, site: str, p: float, masks: Masks | None) -> Tensor:
    """Drops where the recorded mask of this site is False: the oracle draws nothing itself."""
    if p == 0.0 or masks is None:
        return x
    return x * masks[site].to(x.dtype) / (1.0 - p)


def sites(num_layers: int) -> list[str]:
    """The names of all places where a model of so many layers drops something."""
    inside = ("attention.weights", "attention.residual", "mlp.residual")
    return ["embedding", *(f"layers.{i}.{name}" for i in range(num_layers) for name in inside)]


def attention(
    state: State, name: str, x: Tensor, heads: int, p: float, masks: Masks | None
) -> Tensor:
    batch, seq, hidden = x.shape
    qkv = F.linear(x, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
    q, k, v = (t.view(batch, seq, heads, hidden // heads).transpose(1, 2) for t in qkv.chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / (hidden // heads) ** 0.5
    future = torch.ones(seq, seq, dtype=torch.bool, device=x.device).triu(1)
    probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
    probabilities = dropout(probabilities, f"{name}.weights", p, masks)
    context = (probabilities @ v).transpose(1, 2).reshape(batch, seq, hidden)
    return F.linear(context, state[f"{name}.out.weight"], state[f"{name}.out.bias"])


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    up = F.linear(x, state[f"{name}.up.weight"], state[f"{name}.up.bias"])
    return F.linear(
        F.gelu(up, approximate="tanh"), state[f"{name}.down.weight"], state[f"{name}.down.bias"]
    )


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def gpt(
    state: State, tokens: Tensor, *, num_layers: int, num_heads: int, layer_norm: str = "pre",
    dropout_p: float = 0.0, masks: Masks | None = None,
) -> Tensor:  # fmt: skip
    """Logits (batch, seq, vocab) of tokens (batch, seq)."""
    p = dropout_p
    x = state["embedding.word.weight"][tokens]
    x = x + state["embedding.position.weight"][: tokens.shape[1]]
    x = dropout(x, "embedding", p, masks)
    for i in range(num_layers):
        layer = f"layers.{i}"

        def attend(y: Tensor, layer: str = layer) -> Tensor:
            out = attention(state, f"{layer}.attention", y, num_heads, p, masks)
            return dropout(out, f"{layer}.attention.residual", p, masks)

        def feed(y: Tensor, layer: str = layer) -> Tensor:
            return dropout(mlp(state, f"{layer}.mlp", y), f"{layer}.mlp.residual", p, masks)

        if layer_norm == "pre":
            x = x + attend(norm(state, f"{layer}.ln1", x))
            x = x + feed(norm(state, f"{layer}.ln2", x))
        else:
            x = norm(state, f"{layer}.ln1", x + attend(x))
            x = norm(state, f"{layer}.ln2", x + feed(x))
    if layer_norm == "pre":
        x = norm(state, "final_norm", x)
    return x @ state.get("head.weight", state["embedding.word.weight"]).T


def train(
    state: State, batches: Sequence[tuple[Tensor, Tensor]], *, num_layers: int, num_heads: int,
    layer_norm: str = "pre", dropout_p: float = 0.0, masks: Sequence[Masks] | None = None,
    lr: float = 1e-3,
) -> list[Step]:  # fmt: skip
    """Trains from a copy of `state` with AdamW(lr), one whole batch (tokens, targets) a step.

    The loss is the mean over all targets of the batch that are not -100. `masks[i]` holds the
    dropout masks of step i, for the whole batch and all heads.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=lr)
    steps = []
    for i, (tokens, targets) in enumerate(batches):
        optimizer.zero_grad()
        logits = gpt(
            leaves, tokens, num_layers=num_layers, num_heads=num_heads, layer_norm=layer_norm,
            dropout_p=dropout_p, masks=masks[i] if masks else None,
        )  # fmt: skip
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        gradients = {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
            for name, leaf in leaves.items()
        }
        grad_norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        optimizer.step()
        parameters = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        steps.append(Step(loss.detach(), logits.detach(), gradients, grad_norm, parameters))
    return steps
