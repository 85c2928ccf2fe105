"""A clean start for every call: the state of a rank between calls, and the way back to it.

A cell that sets a default dtype, changes the folder or leaves a thread running must not change what
the next cell sees; nor may a cell depend on what the one before it has drawn from a generator.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings

import numpy as np
import torch
import torch.distributed as dist

from minimegatron.ranks import shipping


class Rest:
    """The state of a rank between calls, to which each call returns it."""

    def __init__(self) -> None:
        self._filters = list(warnings.filters)
        self._threads = set(threading.enumerate())
        self._group = dist.group.WORLD if dist.is_initialized() else None
        names = ("SIGTERM", "SIGALRM")  # Windows lacks the second
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._signals = {number: signal.getsignal(number) for number in numbers}
        self._streams = sys.stdout, sys.stderr
        self._device = torch.get_default_device()

    def restore(
        self, cwd: str, path: list[str], environment: dict[str, str], threads: int, seed: int
    ) -> None:
        """Everything that a call could have left behind, as it was; the same seed for all ranks."""
        sys.stdout, sys.stderr = self._streams
        sys.path[:] = path
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(cwd)
        warnings.resetwarnings()
        warnings.filters[:] = self._filters  # type: ignore[index]
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != self._device:
            torch.set_default_device(None if self._device.type == "cpu" else self._device)
        torch.set_grad_enabled(True)
        torch.autograd.set_detect_anomaly(False)
        torch.set_float32_matmul_precision("highest")
        torch.set_printoptions(profile="default")
        # torch.use_deterministic_algorithms would import 800 modules in every rank.
        torch._C._set_deterministic_algorithms(False, warn_only=False)
        shipping.forget_modules()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def undisturbed(self) -> bool:
        """Whether the process group still stands and no thread was left running."""
        group = dist.group.WORLD if dist.is_initialized() else None
        started = {t for t in threading.enumerate() if t.is_alive()} - self._threads
        return group is self._group and not started
