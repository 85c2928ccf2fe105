"""`minimegatron tables`: published tables beside what the course's formulas give."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from minimegatron.figures.tables import PUBLISHED, published_table


def run(name: str | None) -> int:
    """Prints one table, or all of them and a count of the verdicts; 1 for an unknown name."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        tables = [published_table(each) for each in ([name] if name else PUBLISHED)]
    except ValueError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    for table in tables:
        console.print(f"{table}\n", markup=False)
    verdicts = Counter(cell.verdict for table in tables for cell in table.cells)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    console.print(f"{verdicts.total()} figures: {counts}.")
    return 0
