"""The command line: `minimegatron doctor | demo | train | bench`.

This file only declares the commands. Each imports its body from minimegatron/commands when it is
called, so that `minimegatron --help` does not wait for torch.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Learn Megatron-LM (arXiv:1909.08053) by building it, on real processes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Keeps the command's name needed even while there is only one command."""


@app.command()
def doctor() -> None:
    """Check this machine, and print a cure for whatever it lacks."""
    from minimegatron.commands.doctor import run

    raise typer.Exit(run())


if __name__ == "__main__":
    app()
