"""What a timeline needs beside the ledger's messages: the work in between, and a slow network.

`span` names work while a ledger is open. `slow_network` makes each collective take as long as a
cost model says. Ranks that share a processor's cores move their messages with the cores they
compute with, so that nothing can be hidden; a GPU's network needs none of them. Here the wait
sleeps, which needs no core either. Megatron-LM: the ranges that `--profile` shows in Nsight.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from minimegatron.ranks.ledger import TRACE, Span, current_phase


class span:
    """`with mm.span("weight gradient"):` names work in every open ledger; without one it is free.

    On a GPU it measures how long it takes to *ask* for the work: kernels run later.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        end = time.perf_counter()
        for log in TRACE.ledgers:
            times = self.begin - log.opened, end - log.opened
            log.spans.append(Span(self.name, current_phase(), *times))


@contextlib.contextmanager
def slow_network(seconds: Callable[[str, int, int], float]) -> Iterator[None]:
    """In the block each collective of this rank takes at least seconds(op, bytes, ranks).

    `op` is the ledger's name, bytes are those of the logical tensor. One message at a time: the
    next starts when the one before has arrived. Enter it on every rank alike. Messages of
    `send` and direct calls of torch.distributed go at the machine's own pace.
    """
    before, TRACE.network, TRACE.network_free = TRACE.network, seconds, 0.0
    try:
        yield
    finally:
        TRACE.network = before


def arrival(op: str, size: int, ranks: int) -> float:
    """When the slow network, given this message now, has carried it; 0.0 without one."""
    if TRACE.network is None:
        return 0.0
    start = max(time.perf_counter(), TRACE.network_free)
    TRACE.network_free = start + TRACE.network(op, size, ranks)
    return TRACE.network_free
