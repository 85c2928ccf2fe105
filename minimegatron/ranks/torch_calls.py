"""Direct calls of torch.distributed in a cell are written down like the package's own.

In a rank the public functions of torch.distributed are wrapped once, at its start. A wrapped call
keeps torch's behaviour to the letter; the ledger, the parity of messages and the explainer of
deadlocks see it too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from minimegatron.ranks.ledger import collective

# torch's function -> the ledger's name, and the argument that holds the logical tensor.
_CALLS = {
    "all_reduce": ("all_reduce", "tensor"),
    "reduce": ("reduce", "tensor"),
    "broadcast": ("broadcast", "tensor"),
    "all_gather": ("all_gather", "tensor_list"),
    "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "all_gather_single": ("all_gather", "output"),
    "reduce_scatter": ("reduce_scatter", "input_list"),
    "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "reduce_scatter_single": ("reduce_scatter", "input"),
    "all_to_all": ("all_to_all", "input_tensor_list"),
    "all_to_all_single": ("all_to_all", "input"),
    "gather": ("gather", "tensor"),
    "scatter": ("scatter", "tensor"),
    "send": ("send", "tensor"),
    "isend": ("send", "tensor"),
    "recv": ("recv", "tensor"),
    "irecv": ("recv", "tensor"),
    "barrier": ("barrier", None),
}
_PEERS = {"send": "dst", "isend": "dst", "recv": "src", "irecv": "src"}


def _size(value: Any) -> int:
    tensors = value if isinstance(value, (list, tuple)) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _peer(name: str, given: dict[str, Any], group: Any) -> int | None:
    """The global rank at the other end; -1 where torch takes a message from anybody."""
    if name not in _PEERS:
        return None
    position = given.get("group_" + _PEERS[name])
    if position is not None:
        return dist.get_global_rank(group or c10d._get_default_group(), position)
    peer = given.get(_PEERS[name])
    return -1 if peer is None else int(peer)


def _wrap(name: str, original: Callable[..., Any], axis_of: Callable[[Any], str]) -> Any:
    op, tensor = _CALLS[name]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
            group = given.get("group")
            ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
            peer = _peer(name, given, group)
        except Exception:  # a wrong call: torch says what is wrong with it
            return original(*args, **kwargs)
        if len(ranks) == 1:  # nothing is sent
            return original(*args, **kwargs)
        size = _size(given.get(tensor)) if tensor else 0
        later = bool(given.get("async_op")) or name in ("isend", "irecv")
        with collective(op, axis_of(group), ranks, size, peer=peer, later=later):
            return original(*args, **kwargs)

    return call


def record_torch_calls(axis_of: Callable[[Any], str]) -> None:
    """Wrap torch.distributed's functions in this process; `axis_of(group)` names the axis."""
    for name in _CALLS:
        original = getattr(c10d, name, None)
        if original is None:  # a younger or older torch
            continue
        wrapped = _wrap(name, original, axis_of)
        for module in (c10d, dist):
            if getattr(module, name, None) is original:
                setattr(module, name, wrapped)
