"""A stored notebook with a fault is refused by name and cell, and storing gives the same bytes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimegatron.classroom.notebooks.check import check, ends_with_semicolon
from minimegatron.classroom.notebooks.execute import run

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALT = "A line that rises from 1 to 2."
Notebook = dict[str, Any]


def code(source: str, *outputs: dict[str, Any], count: int | None = None) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": count,
        "id": f"cell-{count}",
        "metadata": {},
        "outputs": list(outputs),
        "source": source,
    }


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def picture(alt: str, metadata: dict[str, Any]) -> dict[str, Any]:
    data = {"image/png": "iVBORw0KGgo=", "text/plain": alt}
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def notebook(*cells: dict[str, Any]) -> Notebook:
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


GOOD = notebook(
    {"cell_type": "markdown", "id": "words", "metadata": {}, "source": "![two ranks](ranks.png)"},
    code("print(1)", stream("1\n"), count=1),
    code("draw()", picture(ALT, {"image/png": {"alt": ALT}}), count=2),
)


def problems_of(content: Notebook, folder: Path) -> list[str]:
    path = folder / "lesson.ipynb"
    path.write_text(json.dumps(content))
    return check(path)


def last(change: Callable[[dict[str, Any]], Any]) -> Callable[[Notebook], Any]:
    return lambda content: change(content["cells"][-1])


def put(*outputs: dict[str, Any]) -> Callable[[Notebook], Any]:
    return last(lambda cell: cell.update(outputs=list(outputs)))


def say(source: str) -> Callable[[Notebook], Any]:
    return last(lambda cell: cell.update(source=source))


def result(**data: Any) -> dict[str, Any]:
    return {"output_type": "execute_result", "execution_count": 2, "metadata": {}, "data": data}


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "5 by 2", "traceback": []}
WIDGET = {
    "application/vnd.jupyter.widget-view+json": {"model_id": "1b"},
    "text/plain": "IntSlider()",
}
FAULTS: dict[str, tuple[Callable[[Notebook], Any], str]] = {
    "not run": (last(lambda cell: cell.update(execution_count=None)), "was not run"),
    "out of order": (last(lambda cell: cell.update(execution_count=1)), "run as number 1"),
    "run twice": (last(lambda cell: cell.update(execution_count=7)), "run as number 7"),
    "empty": (say(" \n"), "empty"),
    "error": (put(ERROR), "stores an error: ValueError: 5 by 2"),
    "stderr": (put(stream("careful", "stderr")), "stores stderr: 'careful'"),
    "warning": (put(stream("x.py:3: FutureWarning: soon\n")), "stores a warning"),
    "semicolon": (say("plot(x);  # quiet"), "ends with ';'"),
    "home folder": (put(stream("/home/ada/x.py")), "'/home/ada'"),
    "temporary folder": (put(stream("in /tmp/x1/y")), "'/tmp/x1'"),
    "kernel's own path": (put(stream("ipykernel_4711/9.py")), "'ipykernel_4711'"),
    "process number": (put(stream("rank 1, pid 4711")), "'pid 4711'"),
    "address": (put(result(**{"text/plain": "<function f at 0x7f12ab>"})), "at 0x7f12ab"),
    "path in a table": (put(result(**{"text/html": "<b>/Users/ada</b>"})), "'/Users/ada'"),
    "path in the source": (say("open('/home/ada/x')"), "its source names a place"),
    "picture without text": (put(picture("", {})), "no alt text"),
    "matplotlib's text": (put(picture("<Figure size 6x4 with 1 Axes>", {})), "no alt text"),
    "alt text in one place": (put(picture(ALT, {})), "metadata lacks {'image/png': {'alt': ...}}"),
    "two alt texts": (put(picture(ALT, {"image/png": {"alt": "no"}})), "metadata lacks"),
    "long cell": (say("x = 1\n\n" * 26), "26 lines, a cell may have 25"),
    "widget": (put(result(**WIDGET)), "stores a widget"),
}


def test_a_good_notebook_passes(tmp_path: Path) -> None:
    assert problems_of(GOOD, tmp_path) == []


@pytest.mark.parametrize("spoil, message", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_refused_by_file_and_cell(
    spoil: Callable[[Notebook], Any], message: str, tmp_path: Path
) -> None:
    content = copy.deepcopy(GOOD)
    spoil(content)
    (problem,) = problems_of(content, tmp_path)
    assert "lesson.ipynb, cell 3 (id cell-2): " in problem and message in problem


@pytest.mark.parametrize(
    "source", ["![](a.png)", "see <img src='a.png'>", "<img alt='' src=a.png>"]
)
def test_a_picture_in_the_text_needs_alt_text(source: str, tmp_path: Path) -> None:
    content = copy.deepcopy(GOOD)
    content["cells"][0]["source"] = source
    (problem,) = problems_of(content, tmp_path)
    assert "cell 1 (id words): shows a picture without alt text" in problem


def test_an_error_that_the_lesson_means_passes(tmp_path: Path) -> None:
    content = copy.deepcopy(GOOD)
    content["cells"][-1].update(outputs=[ERROR], metadata={"tags": ["raises-exception"]})
    assert problems_of(content, tmp_path) == []


def test_a_large_file_stored_widgets_and_other_files_are_refused(tmp_path: Path) -> None:
    content = copy.deepcopy(GOOD)
    content["metadata"]["widgets"] = {}
    content["cells"][0]["source"] = "word " * 250_000
    problems = " ".join(problems_of(content, tmp_path))
    assert "1.3 MB, a notebook may have 1" in problems and "state of its widgets" in problems
    (tmp_path / "other.ipynb").write_text("not JSON")
    assert check(tmp_path / "other.ipynb") == [
        f"{tmp_path}/other.ipynb: not a notebook of format 4"
    ]


@pytest.mark.parametrize(
    "source, expected",
    [
        ("x;", True),
        ("x;  # why", True),
        ("f(x);\n\n# why\n", True),
        ("for i in y:\n    f(i);", True),
        ("%time f(x);", True),
        ("!ls;", True),
        ("x; y", False),
        ("x  # ;", False),
        ("';'", False),
        ("'''\n;'''", False),
        ("", False),
    ],
)
def test_a_trailing_semicolon_is_told_from_others(source: str, expected: bool) -> None:
    assert ends_with_semicolon(source) is expected


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_a_lesson_is_stored_as_it_should_be(path: Path) -> None:
    assert check(path) == []


FIGURE = f"""\
import matplotlib.pyplot as plt
figure, axes = plt.subplots()
line = axes.plot([1, 2])
plt.close(figure)
png = lambda *_: figure.savefig(buffer := __import__("io").BytesIO()) or buffer.getvalue()
data = {{"image/png": __import__("base64").b64encode(png()).decode(), "text/plain": {ALT!r}}}
display(data, raw=True, metadata={{"image/png": {{"alt": {ALT!r}}}}})"""
SLIDER = "import ipywidgets\nipywidgets.IntSlider(3)"
STREAMS = "import os, sys\nprint(os.path.exists('beside.txt'))\nsys.stdout.flush()\nprint(2)"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lesson as its writer leaves it, then stored: unnamed cells, a slide, a teacher's mark."""
    path = tmp_path_factory.mktemp("stored") / "lesson.ipynb"
    (path.parent / "beside.txt").touch()
    cells = [code(source) for source in (STREAMS, FIGURE, SLIDER, "1 / 0")]
    for cell in cells:
        del cell["id"]
    cells[0]["metadata"] = {"tags": ["x"], "slideshow": {"slide_type": "slide"}, "trusted": True}
    cells[1]["metadata"] = {"jupyter": {"source_hidden": True}, "nbgrader": {"grade": False}}
    cells[3]["metadata"] = {"tags": ["raises-exception"]}
    path.write_text(json.dumps(notebook(*cells)))
    assert run(path)
    return path


def test_storing_twice_gives_the_same_bytes(stored: Path) -> None:
    before = stored.read_bytes()
    assert not run(stored)
    assert stored.read_bytes() == before
    assert sorted(os.listdir(stored.parent)) == ["beside.txt", "lesson.ipynb"]


def test_what_is_stored_is_normal(stored: Path) -> None:
    content = json.loads(stored.read_text())
    cells = content["cells"]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4]
    assert len({cell["id"] for cell in cells}) == 4
    assert cells[0]["metadata"] == {"tags": ["x"], "slideshow": {"slide_type": "slide"}}
    assert cells[1]["metadata"] == {
        "jupyter": {"source_hidden": True},
        "nbgrader": {"grade": False},
    }
    assert [output["text"] for output in cells[0]["outputs"]] == [["True\n", "2\n"]]
    assert list(cells[2]["outputs"][0]["data"]) == ["text/plain"]
    assert content["metadata"]["language_info"] == {"name": "python"}


def test_what_is_stored_passes_the_check_and_strict_nbval(stored: Path) -> None:
    assert check(stored) == []
    finished = nbval(stored)
    assert finished.returncode == 0, finished.stdout


def test_a_notebook_whose_cell_fails_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps(notebook(code("print(1)"), code("1 / 0"))))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="left as it was(.|\n)*ZeroDivisionError"):
        run(path)
    assert path.read_bytes() == before


def test_the_command_checks_and_its_exit_code_tells(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps(notebook(code("print(1)"))))
    command = [sys.executable, "-m", "minimegatron.classroom.notebooks", "check", str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert finished.returncode == 1
    assert "cell 1 (id cell-None): was not run" in finished.stdout
    assert "1 notebooks checked, 1 problems" in finished.stdout


def nbval(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--nbval"]
    command += ["--nbval-current-env", "--rootdir", str(path.parent), "-p", "no:cacheprovider"]
    command += ["--color=no", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    "end, words",
    [
        ("import os; os._exit(3)", "the kernel ended itself with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "the kernel died of SIGKILL"),
    ],
)
def test_a_dead_kernel_costs_seconds_and_fails_every_cell_from_there(
    end: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "lesson.ipynb"
    cells = [code(source, count=i) for i, source in enumerate(["x = 1", end, "x = 2", "x = 3"], 1)]
    path.write_text(json.dumps(notebook(*cells)))
    start = time.monotonic()
    finished = nbval(path, "--nbval-cell-timeout=1000")
    assert time.monotonic() - start < 30
    assert finished.returncode == 1
    assert f"Cell 1: {words}" in finished.stdout
    assert "Cell 3: not run: cell 1 killed the kernel" in finished.stdout
    assert "3 failed, 1 passed" in finished.stdout


def test_a_lesson_over_its_time_fails_in_its_last_cell(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    sources = ["import time", "time.sleep(1.5)", "x = 1"]
    path.write_text(json.dumps(notebook(*(code(s, count=i) for i, s in enumerate(sources, 1)))))
    finished = nbval(path, "-o", "lesson_seconds=1")
    assert "Cell 2: the lesson's cells took 2 s, its limit is 1 s" in finished.stdout
    assert "1 failed, 2 passed" in finished.stdout
