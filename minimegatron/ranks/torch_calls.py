"""Direct calls of torch.distributed in a cell are written down like the package's own.

In a rank the public functions of torch.distributed are wrapped once, at its start. A wrapped call
keeps torch's behaviour to the letter; the ledger, the parity of messages and the explainer of
deadlocks see it too.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from minimegatron.ranks.board import Call
from minimegatron.ranks.ledger import collective
from minimegatron.ranks.mesh import axis_name

# The argument that holds the logical tensor -> torch's functions.
_CALLS = {
    "tensor": "all_reduce reduce broadcast gather scatter send isend recv irecv",
    "tensor_list": "all_gather",
    "output_tensor": "all_gather_into_tensor",
    "output": "all_gather_single",
    "input_list": "reduce_scatter",
    "input": "reduce_scatter_tensor reduce_scatter_single all_to_all_single",
    "input_tensor_list": "all_to_all",
    "": "barrier",
}
# What torch's names have that the ledger's have not.
_VARIANT = re.compile("^i(?=send|recv)|_(into_tensor|tensor|single)$")
_PEERS = {"send": "dst", "recv": "src"}


def _size(value: Any) -> int:
    tensors = value if isinstance(value, (list, tuple)) else [value]
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def _peer(op: str, given: dict[str, Any], group: Any) -> int | None:
    """The global rank at the other end; -1 where torch takes a message from anybody."""
    if op not in _PEERS:
        return None
    peer, position = given.get(_PEERS[op]), given.get("group_" + _PEERS[op])
    if position is not None:
        return dist.get_global_rank(group, position)
    return -1 if peer is None else int(peer)


def _wrap(original: Callable[..., Any], tensor: str) -> Any:
    name = original.__name__
    op = _VARIANT.sub("", name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
            group = given.get("group") or dist.group.WORLD
            ranks = dist.get_process_group_ranks(group)
            peer = _peer(op, given, group)
        except Exception:  # a wrong call: torch says what is wrong with it
            return original(*args, **kwargs)
        if len(ranks) == 1:  # nothing is sent
            return original(*args, **kwargs)
        later = bool(given.get("async_op")) or name in ("isend", "irecv")
        with collective(Call(op, axis_name(group), ranks, _size(given.get(tensor)), peer), later):
            return original(*args, **kwargs)

    return call


def record_torch_calls() -> None:
    """Wrap torch.distributed's functions in this process."""
    for tensor, names in _CALLS.items():
        for name in names.split():
            original = getattr(dist, name, None)
            if original is None:  # a younger or older torch
                continue
            wrapped = _wrap(original, tensor)
            for module in (dist.distributed_c10d, dist):
                if getattr(module, name, None) is original:
                    setattr(module, name, wrapped)
