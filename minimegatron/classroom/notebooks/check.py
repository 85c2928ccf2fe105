"""What a stored notebook must look like before it may be a lesson.

Readers see the outputs of a lesson before they run it, and nbval compares them on every machine: so
it is stored as run from top to bottom, without errors, warnings, traces of the machine that ran it,
or pictures that a screen reader cannot read. A rule is a generator of messages about one cell.
"""

from __future__ import annotations

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST_CELL = 25  # lines that are not blank
LARGEST_FILE = 1_000_000  # bytes

MACHINE_PATH = re.compile(
    r"/(?:home|Users|root|private|tmp|var/folders)/[\w.~-]+|[A-Za-z]:\\\\?Users\\|site-packages"
    r"|ipykernel_\d+|<ipython-input-|\bpid\b\W{0,3}\d+|\bat 0x[0-9a-fA-F]{6,}"
)
WARNING = re.compile(r"\b[A-Z]\w*Warning\b:")
NO_ALT_TEXT = re.compile(r"\s*(?:<.*>\s*)?", re.DOTALL)  # nothing, or a repr as matplotlib's
IMAGE_WITHOUT_ALT = re.compile(r"!\[\s*\]\(|<img(?![^>]*\balt=[\"'][^\"'])[^>]*>")

Cell = dict[str, Any]


def check(path: Path) -> list[str]:
    """The faults of the notebook at `path`, each naming file and cell; none if it may be stored."""
    problems = []
    size = path.stat().st_size
    if size > LARGEST_FILE:
        problems.append(f"{path}: {size / 1e6:.1f} MB, a notebook may have {LARGEST_FILE / 1e6:g}")
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (ValueError, KeyError, TypeError):
        return [f"{path}: not a notebook of format 4"]
    if "widgets" in notebook.get("metadata", {}):
        problems.append(f"{path}: stores the state of its widgets; `make notebooks` removes it")
    count = 0
    for number, cell in enumerate(cells, 1):
        where = f"{path}, cell {number} (id {cell.get('id', 'missing')})"
        count += cell["cell_type"] == "code"
        for rule in RULES:
            problems += [f"{where}: {message}" for message in rule(cell, count)]
    return problems


def runs_in_order(cell: Cell, count: int) -> Iterator[str]:
    """`count` is the cell's place among the code cells, from 1."""
    if cell["cell_type"] != "code":
        return
    if not text(cell["source"]).strip():
        yield "empty"
    elif cell["execution_count"] is None:
        yield "was not run: a cell that was never run is never compared"
    elif cell["execution_count"] != count:
        yield f"was run as number {cell['execution_count']}, but stands as number {count}"


def is_short(cell: Cell, count: int) -> Iterator[str]:
    lines = sum(bool(line.strip()) for line in text(cell["source"]).splitlines())
    if cell["cell_type"] == "code" and lines > LONGEST_CELL:
        yield f"{lines} lines, a cell may have {LONGEST_CELL}"


def shows_its_value(cell: Cell, count: int) -> Iterator[str]:
    if cell["cell_type"] == "code" and ends_with_semicolon(text(cell["source"])):
        yield "ends with ';', which nbval does not honour: assign the value to _ instead"


def is_quiet(cell: Cell, count: int) -> Iterator[str]:
    """No error (a cell tagged raises-exception means it), nothing on stderr, no warning."""
    meant = "raises-exception" in cell.get("metadata", {}).get("tags", [])
    for output in cell.get("outputs", []):
        if output["output_type"] == "error" and not meant:
            yield f"stores an error: {output['ename']}: {text(output['evalue'])[:80]}"
        elif output.get("name") == "stderr":
            yield f"stores stderr: {text(output['text']).strip()[:80]!r}"
        elif found := WARNING.search(readable(output)):
            yield f"stores a warning: {found[0]!r}"


def names_no_machine(cell: Cell, count: int) -> Iterator[str]:
    parts = [("its source", text(cell["source"]))]
    parts += [("an output", readable(output)) for output in cell.get("outputs", [])]
    for part, content in parts:
        if found := MACHINE_PATH.search(content):
            yield f"{part} names a place of this machine: {found[0]!r}"


def pictures_have_alt_text(cell: Cell, count: int) -> Iterator[str]:
    """A picture's text/plain says what is to be seen, and its metadata gives the same as alt."""
    if cell["cell_type"] == "markdown" and IMAGE_WITHOUT_ALT.search(text(cell["source"])):
        yield "shows a picture without alt text"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        for kind in (kind for kind in data if kind.startswith("image/")):
            alt = text(data.get("text/plain", ""))
            if NO_ALT_TEXT.fullmatch(alt):
                yield f"its picture has no alt text as text/plain, but {alt!r}"
            elif output.get("metadata", {}).get(kind, {}).get("alt") != alt:
                yield f"its picture's metadata lacks {{{kind!r}: {{'alt': ...}}}} as in text/plain"


def stores_no_widget(cell: Cell, count: int) -> Iterator[str]:
    if any("widget-view" in kind for output in cell.get("outputs", []) for kind in data_of(output)):
        yield "stores a widget, whose id changes with every run; `make notebooks` removes it"


RULES = (
    runs_in_order,
    is_short,
    shows_its_value,
    is_quiet,
    names_no_machine,
    pictures_have_alt_text,
    stores_no_widget,
)


def text(value: str | list[str]) -> str:
    """The notebook format stores long texts as lists of lines."""
    return value if isinstance(value, str) else "".join(value)


def data_of(output: Cell) -> dict[str, Any]:
    return output.get("data", {})


def readable(output: Cell) -> str:
    """All that an output says in words: streams, tracebacks, and data that is not a bitmap."""
    parts = [text(output.get(key, "")) for key in ("text", "evalue", "traceback")]
    for kind, value in data_of(output).items():
        if kind not in ("image/png", "image/jpeg"):
            parts.append(text(value) if isinstance(value, str | list) else json.dumps(value))
    return "\n".join(parts)


def ends_with_semicolon(source: str) -> bool:
    """Whether the last token before any comment is a semicolon."""
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.DEDENT, tokenize.ENDMARKER)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):  # IPython's own syntax: a magic, a shell command
        return source.rstrip().endswith(";")
    words = [token.string for token in tokens if token.type not in blank]
    return bool(words) and words[-1] == ";"
