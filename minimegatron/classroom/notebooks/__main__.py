"""`python -m minimegatron.classroom.notebooks check | run [FILES]`; no files: all lessons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimegatron.classroom.notebooks.check import check

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Files = Annotated[list[Path] | None, typer.Argument(exists=True, dir_okay=False)]


def chosen(files: list[Path] | None) -> list[Path]:
    return files or sorted(Path("notebooks").glob("*.ipynb"))


@app.command("check")
def check_command(files: Files = None) -> None:
    """Say what is wrong with the notebooks as stored; exit code 1 if anything is."""
    problems = [problem for path in chosen(files) for problem in check(path)]
    for problem in problems:
        typer.echo(problem)
    typer.echo(f"{len(chosen(files))} notebooks checked, {len(problems)} problems")
    raise typer.Exit(bool(problems))


@app.command("run")
def run_command(files: Files = None) -> None:
    """Execute the notebooks and store them, normalised: two runs give the same bytes."""
    from minimegatron.classroom.notebooks.execute import run

    for path in chosen(files):
        try:
            typer.echo(f"{path}: {'stored' if run(path) else 'unchanged'}")
        except RuntimeError as error:
            typer.echo(error)
            raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
