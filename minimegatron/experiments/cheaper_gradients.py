"""The claim of lesson 16, at length: the same GPT on the same text with gradients made cheaper.

Every run has the same weights, batches and learning rate on two data-parallel ranks; only the
message differs. The first batches are stored, so that anybody can run the first steps again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from minimegatron.analysis.flops import parameter_count
from minimegatron.cli.train import Settings, make_settings_corpus
from minimegatron.data_parallel.compression import compress_gradients
from minimegatron.experiments.train_gpt import DIGITS, first_batches
from minimegatron.models.gpt import GPT
from minimegatron.ranks.launch import launch
from minimegatron.ranks.mesh import Mesh
from minimegatron.training.data import Corpus
from minimegatron.training.loop import History, train

SETTINGS = Settings(steps=400, hidden=64, lr=2e-3)
DP = 2
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "bf16": ("bf16", {}),
    "top-k 10%": ("top-k", {"k": 0.1}),
    "top-k 10%, no feedback": ("top-k", {"k": 0.1, "feedback": False}),
    "top-k 1%": ("top-k", {"k": 0.01}),
    "top-k 1%, no feedback": ("top-k", {"k": 0.01, "feedback": False}),
    "1-bit": ("1-bit", {}),
    "1-bit, no feedback": ("1-bit", {"feedback": False}),
    "PowerSGD": ("powersgd", {"rank": 2}),
    "PowerSGD, no feedback": ("powersgd", {"rank": 2, "feedback": False}),
}


def run(say: Callable[[str], None], settings: Settings = SETTINGS) -> dict[str, Any]:
    """Trains with every message; losses in nats per token, bytes a rank of a ring sends a step."""
    corpus = make_settings_corpus(settings, None)
    runs = {}
    for name, (method, options) in RUNS.items():
        say(f"{name}, {settings.steps} steps ...")
        history = launch(train_on, settings, corpus, method, options, dp=DP, timeout=600)[0]
        runs[name] = {
            "method": method,
            "options": options,
            "wire_bytes": round(history.ledger.wire_bytes(axis="dp", phase="backward")),
            "losses": [round(loss, DIGITS) for loss in history.losses],
            "validation": [[step, round(loss, DIGITS)] for step, loss in history.validation],
        }
    return {
        "settings": asdict(settings),
        "dp": DP,
        "parameters": parameter_count(settings.config(corpus)),
        "vocab_size": corpus.vocab_size,
        "unigram_entropy": round(corpus.unigram_entropy(), DIGITS),
        "runs": runs,
        "first_batches": first_batches(corpus, settings),
    }


def train_on(
    mesh: Mesh, settings: Settings, corpus: Corpus, method: str, options: dict[str, Any]
) -> History:
    """One rank's run."""
    torch.manual_seed(settings.seed)
    model = GPT(settings.config(corpus), mesh)
    compress_gradients(model, method, **options)
    return train(
        model,
        corpus,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        validate_every=max(1, settings.steps // 8),
        seed=settings.seed,
    )
