"""The placement picture: groups as Megatron numbers them, and which of them leave a node."""

from __future__ import annotations

import pytest

import minimegatron as mm
from minimegatron import figures
from minimegatron.figures.placement import groups_of

SIZES = {"tp": 2, "dp": 2, "pp": 2}


def test_groups_are_those_of_the_mesh():
    found = mm.launch(lambda mesh: [getattr(mesh, name).ranks for name in SIZES], **SIZES)
    for rank, groups in enumerate(found):
        for name, group in zip(SIZES, groups, strict=True):
            assert group in groups_of(SIZES, name) and rank in group


def test_the_words_say_which_axis_leaves_a_node():
    alt = figures.placement(SIZES, 4).alt
    assert "tp stays in the node" in alt and "pp leaves the node" in alt
    assert "tp leaves the node" in figures.placement({"pp": 2, "dp": 2, "tp": 2}, 4).alt
    assert "dp one rank: sends nothing" in figures.draw_placement(4, 1, 2, 4).alt


def test_too_many_ranks_and_unequal_nodes_are_refused():
    for sizes, node in ((SIZES, 3), ({"tp": 32}, 8)):
        with pytest.raises(ValueError, match="in equal nodes"):
            figures.placement(sizes, node)


def test_sliders_draw_every_combination():
    explorer = figures.explore_placement()
    before = explorer.picture.value
    explorer.controls["ranks_per_node"].value = 8
    assert explorer.picture.value != before
