"""A line is named the same on every machine and every run."""

from __future__ import annotations

import os
import sys

import torch

from minimegatron.ranks import place


def test_a_cell_is_your_cell_wherever_the_kernel_keeps_it():
    for filename in ("/var/x/ipykernel_31/2718.py", "C:\\t\\ipykernel_3\\14.py", "<stdin>"):
        assert place.name(filename, 3) == "your cell, line 3"
        assert filename == "<stdin>" or place.owner(filename) == "learner"


def test_a_file_is_named_from_the_folder_or_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = os.path.join(tmp_path, "lib", "mine.py")
    assert place.name(inside, 7) == "lib/mine.py, line 7"
    assert place.name(os.path.join(os.sep, "elsewhere", "other.py"), 8) == "other.py, line 8"


def test_the_package_and_libraries_are_told_from_the_learner():
    assert place.owner(place.__file__) == "package"
    assert place.owner(torch.__file__) == place.owner(os.__file__) == "library"
    assert place.owner(__file__) == "learner"
    assert place.name(place.__file__, 1) == "minimegatron/ranks/place.py, line 1"


def test_the_innermost_line_of_the_learner_is_found_below_library_frames():
    found = []
    line = sys._getframe().f_lineno + 1
    sorted([2, 1], key=lambda x: found.append(place.here()) or x)
    assert found[0].endswith(f"test_place.py, line {line}")
