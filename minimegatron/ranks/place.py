"""Where is this code? Names a line the way a learner would: "your cell, line 3".

The text is the same on every run and every machine (nbval compares it), so it never holds a
process id or a temporary path. Frames of this package, of torch and of Python itself are passed
over: a learner wants their own line.
"""

import functools
import os
import re
import site
import sys
import sysconfig
from pathlib import Path
from types import FrameType

PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_PATHS = sysconfig.get_paths()
_HOMES = {_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_HOMES |= {*site.getsitepackages(), os.path.dirname(os.__file__)}
_LIBRARIES = tuple(os.path.join(home, "") for home in _HOMES)
_CELL = re.compile(r"ipykernel_\d+[/\\]\d+\.py$|^<ipython-input")


@functools.lru_cache(maxsize=4096)
def owner(filename: str) -> str:
    """Who wrote the file: "learner", "package" (minimegatron) or "library"."""
    if _CELL.search(filename):
        return "learner"
    if filename.startswith(PACKAGE):
        return "package"
    if filename.startswith(_LIBRARIES) or filename.startswith("<frozen"):
        return "library"
    return "library" if "cloudpickle" in filename else "learner"


def name(filename: str, line: int) -> str:
    """`("…/ipykernel_12/34.py", 3)` -> "your cell, line 3"; files are named from the folder."""
    if filename.startswith("<") or _CELL.search(filename):
        return f"your cell, line {line}"
    if filename.startswith(PACKAGE):
        return f"minimegatron/{Path(filename[len(PACKAGE) :]).as_posix()}, line {line}"
    return f"{_short(filename, os.getcwd())}, line {line}"


@functools.lru_cache(maxsize=4096)
def _short(filename: str, folder: str) -> str:
    inside = filename.startswith(folder.rstrip(os.sep) + os.sep)
    return Path(os.path.relpath(filename, folder)).as_posix() if inside else Path(filename).name


def of(frame: FrameType | None) -> str:
    """The innermost line of the learner's on the stack of `frame`; else the package's outermost."""
    ours = ""
    while frame is not None:
        filename = frame.f_code.co_filename
        who = owner(filename)
        if who == "learner":
            return name(filename, frame.f_lineno)
        if who == "package" and f"{os.sep}ranks{os.sep}" not in filename:
            ours = name(filename, frame.f_lineno)
        frame = frame.f_back
    return ours


def here() -> str:
    """The place of the caller's caller, as `of` names it."""
    return of(sys._getframe(1))
