"""`using`: the learner's piece replaces the package's in every rank, for that call only."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import minimegatron as mm


def _product(mesh):
    torch.manual_seed(0)
    layer = mm.RowParallelLinear(8, 3, mesh.tp)
    return layer(torch.ones(2, 8 // mesh.tp.size)).detach()


def test_a_function_is_replaced_inside_the_packages_own_layers_and_only_for_the_call():
    def ten_times(x, axis):
        return 10 * mm.g(x, axis)  # the original, not itself

    plain = mm.launch(_product, tp=2)[0]
    replaced = mm.launch(_product, tp=2, using={"g": ten_times})[0]
    assert not torch.allclose(plain, replaced)
    assert torch.equal(mm.launch(_product, tp=2)[0], plain)


def test_a_class_is_replaced_too():
    class Mine(torch.nn.Module):
        def __init__(self, in_features, out_features, axis, **options):
            super().__init__()
            self.out = out_features

        def forward(self, x):
            return torch.zeros(*x.shape[:-1], self.out)

    assert mm.launch(_product, tp=2, using={"RowParallelLinear": Mine})[0].abs().max() == 0


def test_the_learners_own_calls_of_the_name_see_the_piece():
    def run(mesh):
        return mm.all_reduce(torch.ones(1), mesh.tp).item()

    def twice(x, axis):
        return 2 * mm.all_reduce(x, axis)

    assert mm.launch(run, tp=2, using={"all_reduce": twice}) == [4, 4]
    assert mm.launch(run, tp=2) == [2, 2]


def test_ranks_start_no_processes_of_their_own():
    """`using` imports the whole package in a rank, launch included."""

    def children(mesh):
        pid = os.getpid()
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()

    if os.path.exists("/proc/self/task"):
        assert mm.launch(children, tp=2, using={"f": lambda x, axis: x}) == ["", ""]
