"""`minimegatron tables`: what the papers print beside what the formulas give."""

from __future__ import annotations

from typer.testing import CliRunner

from minimegatron.cli import app
from minimegatron.figures.tables import PUBLISHED


def test_all_tables_and_how_many_figures_are_reproduced() -> None:
    result = CliRunner().invoke(app, ["tables"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in PUBLISHED)
    assert lines[-1] == (
        "136 figures: 125 within rounding, 9 not reproduced, 2 within its inputs' rounding."
    )


def test_one_table() -> None:
    result = CliRunner().invoke(app, ["tables", "ZeRO figure 1"])
    rows = [line.split() for line in result.output.splitlines()]
    assert "os_g GB a rank 16.6 16.641 within rounding".split() in rows
    assert result.output.splitlines()[-1] == "4 figures: 4 within rounding."


def test_an_unknown_table_is_an_error_that_names_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["tables", "table 9"])
    assert result.exit_code == 1
    assert "'table 9' is not one of Megatron-LM table 1" in result.output
