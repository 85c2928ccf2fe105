"""Executes notebooks and stores them in one normal form, so that two runs give the same bytes.

What changes between runs and says nothing to a reader goes: times, widget ids, the kernel's exact
version, the program named inside a PNG. What a teacher or a slide put into a cell's metadata stays.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

CELL_SECONDS = 120
KEPT_CELL_METADATA = ("tags", "slideshow", "jupyter", "nbgrader", "minimegatron")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> bool:
    """Executes the notebook at `path` in a kernel of this environment, in its own folder, and
    stores it; returns whether the file changed. Raises RuntimeError, and stores nothing, where a
    cell fails that is not tagged raises-exception."""
    before = path.read_text(encoding="utf-8")
    notebook = read(before)
    environment = {**os.environ, "MINIMEGATRON_PROGRESS": "0"}
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    try:
        client.execute(env=environment, stderr=subprocess.DEVNULL)  # the kernel's own log, as nbval
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        raise RuntimeError(f"{path} was left as it was.\n{error}") from None
    after = nbformat.writes(normalised(notebook)) + "\n"
    if after != before:
        draft = path.with_suffix(".ipynb.part")
        draft.write_text(after, encoding="utf-8", newline="\n")
        draft.replace(path)
    return after != before


def read(source: str) -> NotebookNode:
    """A notebook from JSON, its cells named before nbformat names them at random."""
    content = json.loads(source)
    content["nbformat_minor"] = max(content.get("nbformat_minor", 0), 5)
    name_cells(content["cells"])
    return nbformat.reads(json.dumps(content), as_version=4)


def name_cells(cells: list[dict[str, Any]]) -> None:
    """Gives a cell without an id, or with an earlier cell's, one made of its place and text."""
    taken: set[str] = set()
    for number, cell in enumerate(cells):
        if cell.get("id", "") in taken | {""}:
            words = f"{number} {''.join(cell['source'])}"
            cell["id"] = hashlib.sha256(words.encode()).hexdigest()[:8]
        taken.add(cell["id"])


def normalised(notebook: NotebookNode) -> NotebookNode:
    """The notebook in its one normal form (changed in place)."""
    notebook.metadata = nbformat.from_dict(METADATA)
    count = 0
    for cell in notebook.cells:
        cell.metadata = {
            key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata
        }
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = joined([plain(output, count) for output in cell.outputs])
    return notebook


def plain(output: NotebookNode, count: int) -> NotebookNode:
    """An output without widgets (their text and picture stay) and with bare PNGs."""
    if "execution_count" in output:
        output.execution_count = count
    data = output.get("data", {})
    data.pop(WIDGET, None)
    output.pop("transient", None)
    if "image/png" in data:
        png = bare_png(base64.b64decode(data["image/png"]))
        data["image/png"] = base64.b64encode(png).decode()
    return output


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream as one output: where they break depends on timing."""
    whole: list[NotebookNode] = []
    for output in outputs:
        last = whole[-1] if whole else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last["text"] += output.text
        else:
            whole.append(output)
    return whole


def bare_png(png: bytes) -> bytes:
    """The picture without its texts and time (PNG specification, 5.3: length, type, data, CRC)."""
    kept, at = png[:8], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        end = at + 12 + length
        if png[at + 4 : at + 8] not in (b"tEXt", b"iTXt", b"zTXt", b"tIME", b"eXIf"):
            kept += png[at:end]
        at = end
    return kept
