"""GPT-2's weights under our names.

GPT-2 came from TensorFlow: its linear layers ("Conv1D") store A itself, (in, out), where torch.nn
stores A transposed. Query, key and value are three blocks side by side, as ours are. transformers
itself is not needed: a folder holds config.json and tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimegatron.models.config import GPTConfig

_OURS = {
    "ln_1": "ln1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "ln2",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
# What we build is fixed; a config that says otherwise names another model.
_FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read(model_or_path: Any) -> tuple[GPTConfig, dict[str, Tensor], bool]:
    """(config, dense state dict under our names, training mode) of a model or a folder."""
    if isinstance(model_or_path, str | Path):
        path = Path(model_or_path) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} holds no model: it has no config.json")
        config = _config(json.loads(path.read_text()))
        return config, _state(_tensors(path.parent), config), False
    if not hasattr(model_or_path, "state_dict") or not hasattr(model_or_path, "config"):
        raise ValueError(f"neither a GPT2LMHeadModel nor a folder: {model_or_path!r}")
    config = _config(model_or_path.config.to_dict())
    return config, _state(model_or_path.state_dict(), config), model_or_path.training


def _tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if files := sorted(folder.glob("model*.safetensors")):
        for file in files:
            tensors |= load_file(file)
    elif files := sorted(folder.glob("pytorch_model*.bin")):
        for file in files:
            tensors |= torch.load(file, map_location="cpu", weights_only=True)
    else:
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    return tensors


def _config(facts: Mapping[str, Any]) -> GPTConfig:
    for name, allowed in _FIXED.items():
        if facts.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name}={facts[name]!r}: only GPT-2 with {allowed} can be read")
    sizes = facts.get("n_embd", 768), facts.get("n_inner")
    if sizes[1] not in (None, 4 * sizes[0]):
        raise ValueError(f"n_inner={sizes[1]}: the MLP is 4 n_embd = {4 * sizes[0]} wide here")
    rates = {facts.get(f"{where}_pdrop", 0.1) for where in ("resid", "embd", "attn")}
    if len(rates) > 1:
        raise ValueError(f"resid_pdrop, embd_pdrop and attn_pdrop differ: {sorted(rates)}")
    return GPTConfig(
        vocab_size=facts.get("vocab_size", 50257),
        seq_length=facts.get("n_positions", 1024),
        hidden_size=sizes[0],
        num_layers=facts.get("n_layer", 12),
        num_heads=facts.get("n_head", 12),
        dropout=rates.pop(),
        tie_embeddings=facts.get("tie_word_embeddings", True),
        init_std=facts.get("initializer_range", 0.02),
    )


def _state(theirs: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    # The first GPT-2 checkpoints lack the prefix.
    plain = {name.removeprefix("transformer."): value for name, value in theirs.items()}

    def take(name: str) -> Tensor:
        if name not in plain:
            raise ValueError(f"the model has no tensor {name}: is it a GPT2LMHeadModel?")
        return plain[name].detach().clone()

    state = {
        "embedding.word.weight": take("wte.weight"),
        "embedding.position.weight": take("wpe.weight"),
        "final_norm.weight": take("ln_f.weight"),
        "final_norm.bias": take("ln_f.bias"),
    }
    if not config.tie_embeddings:
        state["head.weight"] = take("lm_head.weight")
    for i in range(config.num_layers):
        for there, here in _OURS.items():
            weight = take(f"h.{i}.{there}.weight")
            state[f"layers.{i}.{here}.weight"] = weight.t() if weight.dim() == 2 else weight
            state[f"layers.{i}.{here}.bias"] = take(f"h.{i}.{there}.bias")
    return state
