"""The process that ranks are forked from: it has imported torch, so that no rank has to.

multiprocessing's forkserver, asked to import what a rank needs; on macOS, where a fork after
torch's import is unsafe, and on Windows, which has none, ranks are spawned. This module imports no
torch: it is started while the kernel is still busy importing its own.
"""

import contextlib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver

# The first optimizer would import torch._dynamo, for a second, in every rank.
_PRELOADED = ["torch._dynamo", "torch.distributed.device_mesh", "minimegatron.ranks.rank"]
METHOD = "forkserver" if sys.platform == "linux" else "spawn"


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start processes without running the learner's script again, and with torch's log quiet."""
    main = sys.modules["__main__"]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    if METHOD == "forkserver":
        # Python 3.11 preloads without looking at sys.path, and says nothing when that fails.
        quiet["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        quiet["OMP_NUM_THREADS"] = "1"  # a fork copies no thread: torch has no pool of them
        multiprocessing.set_forkserver_preload(_PRELOADED)
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    # multiprocessing imports the script behind __main__ in each child; cloudpickle needs no such
    # thing, and an unguarded script would run twice.
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start() -> None:
    """Begin to import torch in the server; returns at once. Not in a rank, which forks nothing."""
    if METHOD == "forkserver" and multiprocessing.parent_process() is None:
        with starting():
            forkserver.ensure_running()


def stop() -> None:
    """End the server; the next rank starts another."""
    if METHOD == "forkserver":
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
