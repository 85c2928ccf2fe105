"""Named axes: sizes, positions and groups, and the same mesh under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import minimegatron as mm


def _describe(axis):
    return axis.name, axis.size, axis.rank, axis.ranks


def test_axes_hold_the_ranks_that_share_all_other_positions():
    def run(mesh):
        return [_describe(a) for a in (mesh.tp, mesh.dp, mesh.pp, mesh.axis("tp", "dp"))]

    assert mm.launch(run, tp=2, dp=2, pp=2)[5] == [
        ("tp", 2, 1, [4, 5]),
        ("dp", 2, 0, [5, 7]),
        ("pp", 2, 1, [1, 5]),
        ("tp-dp", 4, 1, [4, 5, 6, 7]),
    ]


def test_groups_are_torchs_own_and_made_once():
    def run(mesh):
        x = torch.tensor([float(mesh.rank)])
        dist.all_reduce(x, group=mesh.dp.group)
        one = torch.ones(1)
        dist.all_reduce(one, group=mesh.pp.group)
        same = mesh.axis("dp", "tp") is mesh.axis("tp", "dp") and mesh.dp is mesh.dp
        return x.item(), one.item(), same, dist.get_world_size(mesh.dp.group)

    assert mm.launch(run, tp=2, dp=2) == [(2, 1, True, 2), (4, 1, True, 2)] * 2


def test_single_is_a_world_of_one_in_this_process():
    mesh = mm.single()
    assert (mesh.rank, mesh.world_size, mesh.device.type) == (0, 1, "cpu")
    for name in ("tp", "cp", "dp", "pp", "ep"):
        assert _describe(mesh.axis(name)) == (name, 1, 0, [0])
    assert "tp=1" in repr(mesh) and "rank 0 of 1" in repr(mesh.tp)


def test_single_has_groups_for_direct_torch_calls():
    code = (
        "import torch, minimegatron as mm, torch.distributed as d\n"
        "x = torch.ones(2); d.all_reduce(x, group=mm.single().tp.group); print(x.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[1.0, 1.0]\n"


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="tp"):
        mm.single().axis("tensor")


_SCRIPT = """
import torch, minimegatron as mm
mesh = mm.connect(tp=2)
x = mm.all_reduce(torch.tensor([float(mesh.rank)]), mesh.tp).item()
y = mm.all_reduce(torch.tensor([float(mesh.rank)]), mesh.dp).item()
open(f"out-{mesh.rank}", "w").write(f"{mesh.tp.ranks} {mesh.dp.ranks} {x} {y}")
"""


def test_connect_gives_the_mesh_under_torchrun_and_dp_takes_the_rest(tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "4", "script.py"]
    here = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-3").read_text() == "[2, 3] [1, 3] 5.0 4.0"


def test_connect_in_a_plain_process_is_a_world_of_one_and_refuses_more(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert mm.connect().world_size == 1
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        mm.connect(tp=2)


def test_srun_on_several_machines_without_an_address_says_what_to_export(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PROCID": "0", "NTASKS": "2", "NNODES": "2", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(RuntimeError, match="export MASTER_ADDR"):
        mm.connect(tp=2)
