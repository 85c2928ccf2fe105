"""Fusion: several small operations on the same numbers as one kernel.

Section 4.2 of "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
arXiv:2104.04473. An element-wise operation is over before it has computed much: its time is that of
reading and writing memory, so what saves time is to read once and write once. Megatron-LM:
`megatron/core/fusions/fused_bias_gelu.py` and `fused_softmax.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias), tanh approximation: (..., n) and (n) -> (..., n). Two kernels where eager."""
    return F.gelu(x + bias, approximate="tanh")


def causal_softmax(scores: Tensor, scale: float) -> Tensor:
    """softmax(scale * scores) over the past: (..., seq, seq) -> the same. Three kernels."""
    seq = scores.shape[-1]
    future = torch.ones(seq, seq, dtype=torch.bool, device=scores.device).triu(1)
    return (scale * scores).masked_fill(future, -torch.inf).softmax(-1)


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` made one kernel by torch.compile, on its first call, which takes seconds.

    Where there is no C++ compiler it says so and hands back `function` itself.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        print(f"not fused: torch.compile needs a C++ compiler, and {compiler} is not here")
        return function
    compiled: Any = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled
