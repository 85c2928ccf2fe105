"""Two ways to do the same thing, timed in turns: what counts is the median of their ratios.

A machine's speed drifts by tens of percent within a minute, so times of two runs say little; the
ratio of two calls made one after the other says more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from minimegatron.ranks.collectives import all_reduce, barrier
from minimegatron.ranks.mesh import Axis

Call = Callable[[], Any]
DIGITS = 3


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the experiment's own, or a test's."""

    rounds: int = 41
    tokens: int = 1024  # rows of X
    hidden: int = 512
    layers: int = 4  # of the GPT whose gradients are averaged
    numbers: int = 2048  # a square of so many numbers a side is fused and copied


@dataclass(frozen=True)
class Row:
    """This way over that way: the rounds' ratios, and the ratio that the model expects."""

    name: str
    ratios: list[float]
    expected: float

    def plain(self) -> dict[str, float]:
        """The row as it is stored."""
        lower, median, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        values = {"lower": lower, "median": median, "upper": upper, "expected": self.expected}
        return {key: round(value, DIGITS) for key, value in values.items()}


def clock(call: Call, axis: Axis | None = None) -> float:
    """Seconds that `call` takes: of the slowest rank of the axis, all having begun together."""
    if axis is not None:
        barrier(axis)
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    taken = time.perf_counter() - begin
    return taken if axis is None else float(all_reduce(torch.tensor(taken), axis, "max"))


def median(call: Call, rounds: int, axis: Axis | None = None) -> float:
    """The median time of `call`, after one call to warm up."""
    call()
    return statistics.median(clock(call, axis) for _ in range(rounds))


def pair(
    name: str, ways: tuple[Call, Call], expected: float, rounds: int, axis: Axis | None = None
) -> Row:
    """The row of two calls, first over second, that take turns: a busy moment meets both."""
    for way in ways:
        way()
    this, that = ways
    return Row(name, [clock(this, axis) / clock(that, axis) for _ in range(rounds)], expected)
