"""Which ranks sit in one machine, and whose messages leave it.

Megatron-LM numbers its ranks so that tp varies fastest, then dp, then pp
(`megatron/core/parallel_state.py`): the axis that sends most stays inside a node. Section 3.2 of
arXiv:2104.04473 says why.
"""

from __future__ import annotations

import math
from itertools import product

import ipywidgets

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import SMALL, canvas, patch, rank_colour, words
from minimegatron.figures.widgets import PictureExplorer

MOST = 16  # ranks that fit side by side
LEFT, RIGHT = 70, 640


def groups_of(sizes: dict[str, int], axis: str) -> list[list[int]]:
    """The ranks that talk along `axis`, a list a group; the first of `sizes` varies fastest."""
    found: dict[tuple[int, ...], list[int]] = {}
    names = list(sizes)[::-1]  # slowest first, as product counts
    for rank, place in enumerate(product(*(range(sizes[name]) for name in names))):
        others = tuple(at for name, at in zip(names, place, strict=True) if name != axis)
        found.setdefault(others, []).append(rank)
    return list(found.values())


def placement(sizes: dict[str, int], ranks_per_node: int) -> Picture:
    """The ranks in their nodes; under each, for every axis, the letter of the group it talks in.

    `sizes`, such as {"tp": 2, "dp": 2, "pp": 2}, has the axis that varies fastest first. Raises
    ValueError for more than 16 ranks, and for nodes of another number than divides them.
    """
    count = math.prod(sizes.values())
    if not 1 <= count <= MOST or count % ranks_per_node:
        raise ValueError(
            f"{count} ranks in nodes of {ranks_per_node}: at most {MOST}, in equal nodes"
        )
    pitch = (RIGHT - LEFT) / count
    with canvas(900, 150 + 58 * len(sizes)) as axes:
        for node in range(count // ranks_per_node):
            left = LEFT + node * ranks_per_node * pitch
            patch(axes, left + 3, 36, ranks_per_node * pitch - 6, 78)
            words(axes, left + ranks_per_node * pitch / 2, 20, f"node {node}", bold=True)
        for rank in range(count):
            colour, left = rank_colour(rank), LEFT + rank * pitch
            patch(axes, left + 8, 50, pitch - 16, 50, str(rank), colour=colour)
        told = []
        for row, name in enumerate(sizes):
            top, groups = 130 + 58 * row, groups_of(sizes, name)
            leaving = [g for g in groups if len({rank // ranks_per_node for rank in g}) > 1]
            words(axes, LEFT - 12, top + 20, name, align="right", bold=True)
            for letter, group in zip("ABCDEFGHIJKLMNOP", groups, strict=False):
                hatch = "///" if group in leaving else ""
                for rank in group if len(group) > 1 else []:
                    patch(axes, LEFT + rank * pitch + 8, top, pitch - 16, 40, letter, hatch=hatch)
            where = "leaves the node" if leaving else "stays in the node"
            where = where if sizes[name] > 1 else "one rank: sends nothing"
            words(axes, RIGHT + 16, top + 20, where, align="left", size=SMALL)
            told.append(f"{name} {where}, groups {groups}")
        words(axes, LEFT, 134 + 58 * len(sizes), "same letter: same group; hatched: crosses nodes",
              align="left", size=SMALL)  # fmt: skip
        return Picture(
            axes, f"{count} ranks in nodes of {ranks_per_node}. " + "; ".join(told) + "."
        )


def draw_placement(tp: int, dp: int, pp: int, ranks_per_node: int) -> Picture:
    """`placement` in Megatron's order; a node holds at most all ranks."""
    sizes = {"tp": tp, "dp": dp, "pp": pp}
    return placement(sizes, min(ranks_per_node, tp * dp * pp))


def explore_placement() -> PictureExplorer:
    """Sliders for the three axes and the ranks a node."""

    def slider(name: str, *options: int, value: int = 2) -> ipywidgets.SelectionSlider:
        return ipywidgets.SelectionSlider(options=options, value=value, description=name)

    return PictureExplorer(
        draw_placement,
        tp=slider("tp", 1, 2, 4),
        dp=slider("dp", 1, 2),
        pp=slider("pp", 1, 2),
        ranks_per_node=slider("ranks a node", 1, 2, 4, 8, value=4),
    )
