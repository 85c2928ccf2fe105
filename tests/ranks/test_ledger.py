"""The ledger counts every collective once, with its axis, phase, bytes and line."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import minimegatron as mm

HERE = "tests/ranks/test_ledger.py, line"


def test_bytes_are_those_of_the_logical_tensor_and_wire_bytes_a_rings():
    def run(mesh):
        x = torch.ones(8, 4)  # 128 bytes
        with mm.ledger() as log:
            mm.all_reduce(x, mesh.tp)
            mm.all_gather(x, mesh.tp)
            mm.reduce_scatter(x, mesh.tp)
            mm.broadcast(x, mesh.tp)
            mm.all_to_all(x, mesh.tp)
            mm.barrier(mesh.tp)
            if mesh.tp.rank == 0:
                mm.send(x, mesh.tp, 1)
            if mesh.tp.rank == 1:
                mm.recv(x, mesh.tp, 0)
        return log

    logs = mm.launch(run, tp=4)
    expected = {
        "all_reduce": (128, 192.0),
        "all_gather": (512, 384.0),
        "reduce_scatter": (128, 96.0),
        "broadcast": (128, 128.0),
        "all_to_all": (128, 96.0),
        "barrier": (0, 0.0),
    }
    for op, (size, wire) in expected.items():
        assert (logs[0].count(op), logs[0].bytes(op), logs[0].wire_bytes(op)) == (1, size, wire)
    assert [log.count("send") for log in logs] == [1, 0, 0, 0], "a message counts at its sender"
    assert [log.count("recv") for log in logs] == [0, 0, 0, 0]
    assert all(record.line.startswith(HERE) for record in logs[0].records)
    assert "all_reduce" in repr(logs[0])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return mm.all_reduce(x, axis)

    @staticmethod
    def backward(ctx, gradient):
        return mm.all_reduce(gradient, ctx.axis), None


def test_phases_are_found_without_being_told_and_recompute_is_told():
    def contexts():
        return contextlib.nullcontext(), mm.phase("recompute")

    def layer(x, axis):
        return _Sum.apply(x, axis).exp()

    def run(mesh):
        x = torch.ones(3, requires_grad=True)
        with mm.ledger() as log:
            options = {"use_reentrant": False, "context_fn": contexts, "early_stop": False}
            checkpoint(layer, x, mesh.tp, **options).sum().backward()
            with mm.phase("optimizer"):
                mm.all_reduce(x, mesh.tp)
        return [record.phase for record in log.records]

    assert mm.launch(run, tp=2)[0] == ["forward", "recompute", "backward", "optimizer"]


def test_filters_combine_and_a_wrong_phase_is_refused():
    def run(mesh):
        with mm.ledger() as log:
            mm.all_reduce(torch.ones(1), mesh.tp)
            with mm.phase("other"):
                mm.all_reduce(torch.ones(1), mesh.dp)
        return log

    log = mm.launch(run, tp=2, dp=2)[0]
    assert log.count() == 2 and log.count("all_reduce", axis="tp") == 1
    assert log.count(axis="dp", phase="other") == 1 and log.count(axis="dp", phase="forward") == 0
    with pytest.raises(ValueError, match="forward, backward"):
        log.count(phase="forwards")


def test_direct_calls_of_torch_are_recorded_once():
    def run(mesh):
        x = torch.ones(4)
        with mm.ledger() as log:
            dist.all_reduce(x)
            dist.all_reduce(x, group=mesh.tp.group)
            dist.all_gather([torch.empty(4) for _ in range(4)], x)
            dist.broadcast(x, src=0)
            dist.barrier()
            dist.all_reduce(x, group=mesh.pp.group)  # one rank: nothing is sent
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, x, mesh.rank ^ 1),
                    dist.P2POp(dist.irecv, torch.empty(4), mesh.rank ^ 1),
                ]
            )
            for work in works:
                work.wait()
        return log

    log = mm.launch(run, tp=2, dp=2)[0]
    assert [(r.op, r.axis, r.bytes) for r in log.records] == [
        ("all_reduce", "world", 16),
        ("all_reduce", "tp", 16),
        ("all_gather", "world", 64),
        ("broadcast", "world", 16),
        ("barrier", "world", 0),
        ("send", "world", 16),
    ]


def test_ledgers_nest_and_close():
    def run(mesh):
        x = torch.ones(1)
        with mm.ledger() as outer:
            mm.all_reduce(x, mesh.tp)
            with mm.ledger() as inner:
                mm.all_reduce(x, mesh.tp)
        mm.all_reduce(x, mesh.tp)
        return len(outer), len(inner)

    assert mm.launch(run, tp=2)[0] == (2, 1)
