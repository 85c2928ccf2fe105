"""Text to train on: your own, or what every Python brings along, so that nothing is downloaded.

The default is the Python language reference that CPython ships as `pydoc_data.topics`, about 370 kB
of English and code. It differs a little between Python versions, and so do losses on it.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
import warnings
from pathlib import Path


def default_text() -> str:
    """The Python language reference; the docstrings of the standard library where it is absent.

    Sections that several topics share are kept once: else the validation part would hold text that
    was trained on.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
        sections = "\n\n".join(topics.values()).split("\n\n")
    except ImportError:
        sections = standard_library_docstrings()
    return "\n\n".join(dict.fromkeys(sections))


def standard_library_docstrings() -> list[str]:
    """Docstrings of modules of the standard library, read from their source without running it."""
    root = Path(os.__file__).parent
    sections = []
    for module in sorted(m.name for m in pkgutil.iter_modules([str(root)]) if m.name[0] != "_"):
        file = root / f"{module}.py"
        if module not in sys.stdlib_module_names or not file.is_file():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                sections.append(ast.get_docstring(node) or "")
    return [s for s in sections if s]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of all UTF-8 files in a folder (by name, hidden ones left out).

    Raises ValueError naming the path when it is missing, unreadable, not UTF-8, or holds no text.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise ValueError(f"{path} holds no text")
    return text


def read_folder(folder: Path) -> str:
    texts, skipped = [], []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden:
            try:
                texts.append(read_text(file))
            except ValueError:
                skipped.append(file.name)
    if skipped:
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        warnings.warn(f"{folder}: {len(skipped)} files hold no UTF-8 text: {names}", stacklevel=3)
    if not texts:
        raise ValueError(f"{folder} holds no file with UTF-8 text")
    return "\n\n".join(texts)
