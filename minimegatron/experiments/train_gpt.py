"""The claim of lesson 09, at length: the same GPT, the same text, four splits, one loss curve.

The first batches are stored too. The text, Python's documentation, differs between versions of
Python; with the batches anybody can run the first steps again, on any version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from minimegatron.analysis.flops import parameter_count
from minimegatron.cli.train import Settings, make_settings_corpus, sample, train_on
from minimegatron.models.gpt import GPT
from minimegatron.ranks.launch import launch
from minimegatron.training.data import Corpus

# Half the demo's rate: at 4e-3 the norm jumps in the warm-up, and there rounding grows to 0.06.
SETTINGS = Settings(steps=400, lr=2e-3)
SPLITS = {"tp=1": (1, 1), "tp=2": (2, 1), "tp=4": (4, 1), "dp=2": (1, 2)}
KEPT_BATCHES = 10
DIGITS = 6  # of a loss, after the point: float32 has no more


def run(say: Callable[[str], None], settings: Settings = SETTINGS) -> dict[str, Any]:
    """Trains at every split; losses in nats per token, the first batches, text before and after."""
    corpus = make_settings_corpus(settings, None)
    runs = {}
    for name, (tp, dp) in SPLITS.items():
        say(f"{name}, {settings.steps} steps ...")
        outcome = launch(train_on, settings, corpus, None, tp=tp, dp=dp, timeout=600)[0]
        history = outcome.history
        runs[name] = {
            "losses": [round(loss, DIGITS) for loss in history.losses],
            "validation": [[step, round(loss, DIGITS)] for step, loss in history.validation],
            "text": outcome.sample,
        }
    torch.manual_seed(settings.seed)
    untrained = GPT(settings.config(corpus))
    return {
        "settings": asdict(settings),
        "parameters": parameter_count(untrained.config),
        "tokens": len(corpus.train),
        "vocab_size": corpus.vocab_size,
        "unigram_entropy": round(corpus.unigram_entropy(), DIGITS),
        "text_before": sample(untrained, corpus, settings.seed),
        "runs": runs,
        "first_batches": first_batches(corpus, settings),
    }


def first_batches(corpus: Corpus, settings: Settings) -> list[list[list[int]]]:
    """(steps, batch, seq + 1): tokens and, shifted by one, targets, of the first steps."""
    batches = []
    for step in range(min(KEPT_BATCHES, settings.steps)):
        tokens, targets = corpus.batch(step, settings.batch, settings.seq, settings.seed)
        batches.append(torch.cat([tokens, targets[:, -1:]], dim=1).tolist())
    return batches
