"""The learner's piece in place of the package's, for one call: `using={"f": my_f}`.

One mechanism serves the exercises, the wrong answers and the bug museum: every module of the
package that has bound the name finds the learner's object under it until the block ends. A
learner's piece that calls the package's own (`mm.f` inside `my_f`) reaches the original.
"""

import contextlib
import difflib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch

import minimegatron as mm

_replaced: set[str] = set()


def replaced(name: str) -> bool:
    """Whether the learner's own piece stands in for the package's `name` now."""
    return name in _replaced


def check(using: Mapping[str, Any] | None) -> dict[str, Any]:
    """`using` as a dict, or an error that says what it must be."""
    if using is not None and not isinstance(using, Mapping):
        raise TypeError(f"using is a dict such as {{'f': my_f}}, not {using!r}")
    pieces = dict(using or {})
    for name, piece in pieces.items():
        if name not in mm.__all__:
            near = ", ".join(difflib.get_close_matches(name, mm.__all__)) or "mm.__all__ lists them"
            raise ValueError(f"using={name!r}: minimegatron has no such name to replace ({near})")
        if not callable(piece):
            raise TypeError(f"using={name!r}: {piece!r} is not a function or class")
        if isinstance(piece, type) and issubclass(piece, torch.autograd.Function):
            raise TypeError(f"using={name!r}: give {piece.__name__}.apply, not the class")
    return pieces


def _stand_in(piece: Callable[..., Any], original: Any) -> Any:
    """`piece`, except that while it runs the name means the original again."""
    if isinstance(piece, type):
        return piece
    running = False

    @functools.wraps(piece)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal running
        if running:
            return original(*args, **kwargs)
        running = True
        try:
            return piece(*args, **kwargs)
        finally:
            running = False

    return call


@contextlib.contextmanager
def use(using: Mapping[str, Any] | None) -> Iterator[None]:
    """Put the pieces in place of the package's in this process, until the block ends."""
    undo: list[tuple[dict[str, Any], str, Any]] = []
    pieces = check(using)
    if pieces:  # a module imported inside the block would keep the piece for ever
        for module in set(mm._MODULE_OF.values()):
            import_module(module)
    try:
        for name, piece in pieces.items():
            original = getattr(mm, name)
            stand_in = _stand_in(piece, original)
            ours = [m for n, m in sys.modules.items() if n.split(".")[0] == "minimegatron"]
            for namespace in map(vars, ours):
                for key in [key for key, value in namespace.items() if value is original]:
                    undo.append((namespace, key, original))
                    namespace[key] = stand_in
            _replaced.add(name)
        yield
    finally:
        for namespace, key, original in reversed(undo):
            namespace[key] = original
        _replaced.difference_update(pieces)
