"""How functions, arguments and results travel between the kernel and its ranks.

cloudpickle carries functions and classes defined in cells. The learner's own modules travel by
value, as the kernel knows them, until their file is edited; then the ranks read the file. Tensors
travel as plain bytes: detached, on the CPU, without the storage they were a view of.
"""

import contextlib
import importlib
import io
import os
import pickle
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from minimegatron.ranks import place

_seen: dict[str, Any] = {}  # a module's spec, and its file's time and size when it was first sent
_arrive_on = torch.device("cpu")
_others: set[str] = set()  # modules found not to be the learner's: thousands, looked at once


def _rebuild(data: bytes, dtype: torch.dtype, shape: tuple[int, ...], kind: str) -> Tensor:
    """A tensor from its bytes; `kind` is "data", "leaf" (requires grad) or "parameter"."""
    x = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    x = x.reshape(shape).to(_arrive_on)
    return nn.Parameter(x) if kind == "parameter" else x.requires_grad_(kind == "leaf")


class _Pickler(cloudpickle.Pickler):
    """cloudpickle, with tensors as their own bytes."""

    detach = False

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in (Tensor, nn.Parameter) and obj.layout == torch.strided:
            if not obj.is_quantized and not obj.is_meta:
                kind = "leaf" if obj.requires_grad and not self.detach else "data"
                if isinstance(obj, nn.Parameter) and obj.requires_grad:
                    kind = "parameter"
                flat = obj.detach().resolve_conj().cpu().contiguous().reshape(-1)
                data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
                return _rebuild, (data, obj.dtype, tuple(obj.shape), kind)
        return super().reducer_override(obj)


def _dumps(value: Any, detach: bool = False) -> bytes:
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=5)
    pickler.detach = detach
    pickler.dump(value)
    return file.getvalue()


def pack_call(value: Any) -> bytes:
    """What a call sends to the ranks; TypeError where something in it cannot be sent."""
    try:
        with _by_value():
            return _dumps(value)
    except Exception as first:
        try:  # a learner's module may hold a lock or a file: let the ranks import it themselves
            return _dumps(value)
        except Exception:
            raise TypeError(f"this call cannot be sent to the ranks: {first}") from None


def pack_result(value: Any) -> bytes:
    """What a rank sends back. A parameter on its own arrives as a plain tensor."""
    try:
        plain = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, value)
        return _dumps(plain, detach=True)
    except Exception as error:
        kind = f"the result, of type {type(value).__name__}, cannot be sent back to the notebook"
        raise TypeError(f"{kind}: {error}") from None


def unpack(data: bytes, device: torch.device | None = None) -> Any:
    """The reverse of both; tensors arrive on `device`, by default the CPU."""
    global _arrive_on
    before, _arrive_on = _arrive_on, device or _arrive_on
    try:
        return pickle.loads(data)
    finally:
        _arrive_on = before


def _learner_modules() -> dict[str, ModuleType]:
    found = {}
    for name in sys.modules.keys() - _others:
        module = sys.modules[name]
        # vars, because some modules make attributes, and warnings, when asked for one.
        filename = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if filename and not name.startswith("__") and place.owner(filename) == "learner":
            found[name] = module
        else:
            _others.add(name)
    return found


def _unchanged(name: str, module: ModuleType) -> bool:
    """Whether the learner's module has the file that the kernel has read."""
    try:
        status = os.stat(str(module.__file__))
    except OSError:  # its file is gone: only the kernel knows it
        return True
    stamp = status.st_mtime_ns, status.st_size
    # A new spec means that the kernel has read the file again (importlib.reload).
    if name not in _seen or _seen[name][0] is not module.__spec__:
        _seen[name] = module.__spec__, stamp
    return _seen[name][1] == stamp


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """In the block the learner's unchanged modules are sent whole, not by name."""
    registered = cloudpickle.list_registry_pickle_by_value()
    found = [m for name, m in _learner_modules().items() if _unchanged(name, m)]
    mine = [module for module in found if module.__name__ not in registered]
    with contextlib.ExitStack() as undo:
        for module in mine:
            cloudpickle.register_pickle_by_value(module)
            undo.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def read_sources_afresh() -> None:
    """In a rank: the learner's modules are compiled from their source, never from a cache.

    A cached file is told from its source by size and whole seconds only, so that a quick edit would
    go unseen.
    """
    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Any:
        path = self.get_filename(name)
        if place.owner(path) == "learner":
            return self.source_to_code(self.get_data(path), path)
        return usual(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore


def forget_modules() -> None:
    """In a rank, before a call: the learner's modules are read again when next imported."""
    for name in _learner_modules():
        del sys.modules[name]
    importlib.invalidate_caches()
