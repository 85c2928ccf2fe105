from __future__ import annotations

from pathlib import Path

import pytest

from minimegatron import figures
from minimegatron.figures.course import CORE, PARTS

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_stands_in_the_map_under_its_number(notebook: Path) -> None:
    lessons = [lesson for part in PARTS.values() for lesson in part]
    number, first, *_ = notebook.stem.split("_")
    assert lessons[int(number)].lower().replace(",", "").split()[0] == first


def test_the_map_names_the_core_path() -> None:
    assert f"The {len(CORE)} lessons of the core path" in figures.course_map().alt
    assert len([lesson for part in PARTS.values() for lesson in part]) == 29  # 00 to 27, capstone
