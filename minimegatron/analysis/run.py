"""How long a run takes, what it costs, and what it draws from the wall.

arXiv:2104.04473, section 5.1: a token costs 8 FLOPs a parameter, 2 forward, 4 backward and 2 for
the forward that full recomputation runs again, so a run takes 8TP/(nX) seconds on n GPUs of X
FLOP/s each: 6TP/(nX) without. X is what a GPU reaches, not its peak. Prices and watts change:
they are arguments, with no default to trust.
"""

from __future__ import annotations


def training_days(
    parameters: float, tokens: float, gpus: int, flops: float, recompute: bool = True
) -> float:
    """Days to train on `tokens` at `flops` (FLOP/s) a GPU; with full recomputation or without.

    With it `flops` are hardware FLOP/s, as the papers of Megatron-LM state them.
    """
    return (8 if recompute else 6) * tokens * parameters / (gpus * flops) / 86400


def gpu_cost(days: float, gpus: int, price: float) -> float:
    """In the currency of `price`, which one GPU costs an hour."""
    return 24 * days * gpus * price


def energy_kwh(days: float, gpus: int, watts: float, overhead: float = 1.0) -> float:
    """`watts` a GPU with its share of the host, times `overhead` for cooling and the like (PUE)."""
    return 24 * days * gpus * watts * overhead / 1000
