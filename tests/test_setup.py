"""The files that set the project up agree with each other, and the package keeps its shape."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = ROOT / "minimegatron"
FILES = sorted(PACKAGE.rglob("*.py"))

CONDA_NAMES = {"pytorch": "torch"}
CONDA_ONLY = {"make", "pip", "python"}

LONGEST_FILE = 250  # lines of code
LONGEST_CORE = 5000  # lines of code of what learners read; the design asks for 4,500
# An arrow goes from a layer to those on its right, never back.
LAYERS = [
    {"cli", "experiments"},
    {"classroom", "figures"},
    {"training"},
    {"analysis"},
    {"models"},
    {"tensor_parallel", "data_parallel", "pipeline_parallel"},
    {"ranks"},
]


def requirements() -> dict[str, str]:
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    return {parsed.name: str(parsed.specifier) for parsed in map(Requirement, lines)}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_conda_users_get_the_packages_and_ranges_of_pyproject() -> None:
    lines = (ROOT / "environment.yml").read_text().split("dependencies:")[1].splitlines()
    entries = [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]
    conda: dict[str, str] = {}
    for entry in entries:
        if entry in ("pip:", "--editable ."):
            continue
        parsed = Requirement(entry)
        conda[CONDA_NAMES.get(parsed.name, parsed.name)] = str(parsed.specifier)
    python = conda["python"]
    assert {
        name: range for name, range in conda.items() if name not in CONDA_ONLY
    } == requirements()
    assert set(python.split(",")) == set(PROJECT["requires-python"].split(","))


def test_every_package_asked_for_was_tested_at_one_exact_version_within_its_range() -> None:
    exact = constraints()
    for name, specifier in requirements().items():
        assert Requirement(f"{name}{specifier}").specifier.contains(exact[name]), name


def test_the_exact_versions_exist_on_every_platform() -> None:
    assert constraints()["torch"] == "2.13.0"
    for name, version in constraints().items():
        assert Version(version).local is None, f"{name}: a local version is one index's own"


def test_the_version_is_told_once_the_same_everywhere() -> None:
    told = re.search(r'__version__ = "(.*)"', (PACKAGE / "__init__.py").read_text())
    assert told and told[1] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "AGENTS.md"])
def test_every_make_target_and_file_that_the_pages_name_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z][a-z-]*)", text) + re.findall(
        r"^make ([a-z-]+)", text, re.M
    ):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_help_answers_without_importing_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom minimegatron.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'doctor' in result.output, result.output\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_holds_one_idea(path: Path) -> None:
    assert lines_of_code(path) <= LONGEST_FILE


def test_a_learner_can_read_the_whole_package() -> None:
    aside = set().union(*LAYERS[:2])
    core = [path for path in FILES if part_of(path) not in aside]
    assert sum(map(lines_of_code, core)) <= LONGEST_CORE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_from_the_upper_layers_to_the_lower(path: Path) -> None:
    place = {name: level for level, names in enumerate(LAYERS) for name in names}
    part = part_of(path)
    for module in imported(path) if part != "__init__" else []:
        other = module.split(".")[1]
        near = other == part or {other, part} == LAYERS[0]  # a command and the experiment it runs
        assert place[other] > place[part] or near, f"imports {module}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {
            node.module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom)
        }
        for path in FILES
    }
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def part_of(path: Path) -> str:
    """The folder right under the package, or the file there."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that the file names in its import statements."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith("minimegatron."))


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    source = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type not in (tokenize.COMMENT, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines -= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
    return len(lines)


def test_the_example_on_the_first_page_prints_what_it_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (promised,) = re.findall(r"^print\(.*# (.*)$", example, re.MULTILINE)
    script = tmp_path / "example.py"
    script.write_text(example)
    command = [sys.executable, str(script)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert finished.stdout == promised + "\n", finished.stderr
