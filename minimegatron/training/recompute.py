"""What forward keeps for backward, measured; and kept on the host instead, if asked.

autograd saves tensors inside its graph, where nobody sees them. A pair of hooks does: each saved
tensor passes through them on its way in and out. So the bytes that `analysis/activations.py`
derives (arXiv:2205.05198, section 4) can be counted, and the tensors can wait in the host's memory.
Megatron-LM reads its allocator's peak; its offloading is in
`megatron/core/pipeline_parallel/fine_grained_activation_offload.py`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from minimegatron.models.gpt import GPT
from minimegatron.ranks.ledger import current_phase


@dataclass(frozen=True)
class Saved:
    """A saved tensor: the name of the module that saved it ("": outside all); storage in bytes."""

    place: str
    phase: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


@dataclass
class SavedTensors:
    """What was saved in the block, in order; `held`, in bytes, after each that came or went.

    `gpu_peak` is the most bytes that a GPU's allocator had given out (None without a GPU).
    """

    records: list[Saved] = field(default_factory=list)
    held: list[int] = field(default_factory=lambda: [0])
    gpu_peak: int | None = None

    def select(self, place: str = "", phase: str = "forward") -> list[Saved]:
        """Records of this phase, saved by the module `place` or inside it ("": anywhere)."""
        found = [r for r in self.records if f"{r.place}.".startswith(f"{place}." if place else "")]
        return [r for r in found if r.phase == phase]

    def bytes(self, place: str = "", phase: str = "forward") -> int:
        """Bytes saved in this phase by the module `place` and those inside it ("": all)."""
        return sum(r.bytes for r in self.select(place, phase))


class _Holder:
    """One saved storage; gone as soon as autograd has dropped every tensor in it."""


@contextlib.contextmanager
def saved_tensors(model: GPT, offload: bool = False) -> Iterator[SavedTensors]:
    """Writes down every tensor that autograd saves in the block: forward, or a whole step.

        with mm.saved_tensors(model) as saved:
            model.loss(tokens, targets).backward()

    Each storage counts once while it is held, parameters not at all. With `offload` each tensor
    moves to the host's memory until backward wants it, as often as it is saved, and nothing is
    held; on a CPU it is copied.
    """
    log, places, device = SavedTensors(), [""], model.mesh.device
    holders = weakref.WeakValueDictionary[int, _Holder]()
    host = save_on_cpu(pin_memory=device.type == "cuda")

    def pack(x: Tensor) -> Any:
        storage = x.untyped_storage()
        key, size = storage.data_ptr(), x.nbytes if offload else storage.nbytes()
        if any(key == p.untyped_storage().data_ptr() for p in model.parameters()):
            return x
        holder = holders.get(key)
        if offload or holder is None:
            record = Saved(places[-1], current_phase(), tuple(x.shape), x.dtype, size)
            log.records.append(record)
        if offload:
            return host.pack_hook(x if x.is_cuda else x.clone())
        if holder is None:
            holder = holders[key] = _Holder()
            log.held.append(log.held[-1] + size)
            weakref.finalize(holder, lambda: log.held.append(log.held[-1] - size))
        return holder, x.detach()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        held: Tensor = packed[1]
        return host.unpack_hook(packed) if offload else held

    def leave(*_: Any) -> None:
        del places[-1]

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: places.append(name)))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with saved_tensors_hooks(pack, unpack):
            yield log
    finally:
        for hook in hooks:
            hook.remove()
        if device.type == "cuda":
            log.gpu_peak = torch.cuda.max_memory_allocated(device)
