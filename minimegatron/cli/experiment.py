"""`minimegatron experiment NAME`: makes the numbers again that a lesson draws from a file."""

from __future__ import annotations

import platform
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

import minimegatron
from minimegatron.experiments import EXPERIMENTS, as_json, check_name
from minimegatron.ranks.errors import RankError

PACKAGES = ("torch", "tokenizers")  # what the numbers depend on, beside Python and the course


def run(name: str | None, out: Path | None = None) -> int:
    """Runs the experiment and stores it in `out` (NAME.json here); 1 after saying what went wrong.

    Without a name: lists the experiments.
    """
    console = Console(highlight=False, soft_wrap=True)
    if name is None:
        for known, what in EXPERIMENTS.items():
            console.print(f"{known}: {what}", markup=False)
        return 0
    begin = time.perf_counter()
    try:
        check_name(name)
        file = out or Path(f"{name}.json")
        if not file.parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.parent}")
        module = import_module(f"minimegatron.experiments.{name}")
        result = module.run(lambda line: console.print(f"  {line}", markup=False))
        made = {"command": command(name, out), "versions": versions()}
        file.write_text(as_json(made | result) + "\n", encoding="utf-8", newline="\n")
    except (ValueError, FloatingPointError, OSError, RankError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    seconds = time.perf_counter() - begin
    console.print(f"{seconds:.0f} s in all, stored in {file}", markup=False)
    return 0


def command(name: str, out: Path | None) -> str:
    """What was typed; a folder of this machine is nobody else's concern."""
    place = "" if out is None else f" --out {out if not out.is_absolute() else out.name}"
    return f"minimegatron experiment {name}{place}"


def versions() -> dict[str, str]:
    """What made the numbers."""
    ours = {"python": platform.python_version(), "minimegatron": minimegatron.__version__}
    return ours | {package: version(package) for package in PACKAGES}
