"""A network as slow as a cost model says, to see on a laptop what overlap hides.

Ranks that share a processor move their messages with the cores they compute with, so that little
can be hidden. A GPU's network works by itself. Here a message goes its way, and whoever waits for
it sleeps until the model's time has passed: that takes time and no core.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from minimegatron.ranks import collectives
from minimegatron.ranks.ledger import TRACE
from minimegatron.ranks.mesh import Axis


@contextlib.contextmanager
def slow_network(seconds: Callable[[str, int, int], float]) -> Iterator[None]:
    """In the block each collective of this rank takes at least seconds(op, bytes, ranks).

    `op` is its name in the ledger, bytes are those of the logical tensor. One message at a time:
    the next leaves when the one before has arrived. Enter it on every rank alike. `send`, `barrier`
    and direct calls of torch.distributed keep the machine's own pace.
    """
    original, free = collectives._run, 0.0

    def run(
        op: str, x: Tensor, axis: Axis, size: int, start: Callable[[], Any], later: bool = False
    ) -> Any:
        def start_slow() -> Callable[[], Tensor]:
            nonlocal free
            free = due = max(time.perf_counter(), free) + seconds(op, size, axis.size)
            record, finish = TRACE.record, start()

            def finish_slow() -> Tensor:
                begin = time.perf_counter()
                result = finish()
                now = time.perf_counter()
                if record:  # a peer that starts late makes its message late
                    blocked = now if now - begin > 1e-3 else 0.0
                    record.done = max(due, record.done or blocked)
                time.sleep(max(0.0, due - now))
                return result

            return finish_slow

        return original(op, x, axis, size, start_slow, later)

    vars(collectives)["_run"] = run
    try:
        yield
    finally:
        vars(collectives)["_run"] = original
