"""Named axes over the ranks: who talks to whom.

Megatron splits a job of tp*cp*dp*pp ranks along named axes; the tensor-parallel rank varies
fastest, then cp, dp, pp (`megatron/core/parallel_state.py`, `RankGenerator` with order
tp-cp-ep-dp-pp), so that the ranks which talk most sit in one machine. Here the grid is torch's
DeviceMesh; a layer is given the one axis it needs and reaches for nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

# Slowest first: the order of the DeviceMesh's dimensions.
ORDER = ("pp", "dp", "cp", "tp")
_NOT_BUILT = ("cp", "ep")
# The ranks' own watchdog ends a wait long before (`launch`); torch's would hide the cause.
WAIT = timedelta(days=7)


class Axis:
    """The ranks this rank talks to along one axis.

    `size` ranks, of which this one is number `rank`; `ranks` are their global numbers, in order;
    `group` is the ProcessGroup, made on first use where the axis has one rank only.
    """

    def __init__(
        self, name: str, ranks: list[int], rank: int, group: Callable[[], dist.ProcessGroup]
    ) -> None:
        self.name, self.ranks, self.rank, self.size = name, ranks, rank, len(ranks)
        self._group: Callable[[], dist.ProcessGroup] | dist.ProcessGroup = group
        self._exchanges = 0

    @property
    def group(self) -> dist.ProcessGroup:
        """The ProcessGroup for direct calls of torch.distributed."""
        if not isinstance(self._group, dist.ProcessGroup):
            self._group = self._group()
        return self._group

    def next_exchange(self) -> int:
        """A number for the next pairwise exchange; the ranks of an axis count alike."""
        self._exchanges += 1
        return self._exchanges

    def __repr__(self) -> str:
        return f"Axis({self.name}: rank {self.rank} of {self.size}, ranks {self.ranks})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"an axis ({self.name}) lives in its rank and cannot be sent: use the one of your "
            "function's own mesh, return numbers and tensors"
        )


class Mesh:
    """The ranks as a grid with the axes pp, dp, cp, tp (tp fastest), and ep inside dp."""

    def __init__(self, sizes: dict[str, int], rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        self.sizes = {name: sizes.get(name, 1) for name in ORDER}
        self.world_size = 1
        for size in self.sizes.values():
            self.world_size *= size
        self._grid = torch.arange(self.world_size).reshape(*self.sizes.values())
        self._joined: dict[tuple[str, ...], Axis] = {}
        self._device_mesh = self._make_device_mesh()

    def _make_device_mesh(self) -> DeviceMesh | None:
        """torch's own mesh over the axes longer than 1; None for one rank."""
        wide = {name: size for name, size in self.sizes.items() if size > 1}
        if not wide:
            return None
        kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return init_device_mesh(kind, tuple(wide.values()), mesh_dim_names=tuple(wide))

    def axis(self, *names: str) -> Axis:
        """One axis, or several joined: `mesh.axis("tp", "pp")`. All ranks must ask for it."""
        unknown = [name for name in names if name not in (*ORDER, "ep")]
        if unknown or not names:
            raise ValueError(f"mesh.axis takes names of {', '.join((*ORDER, 'ep'))}, not {unknown}")
        key = tuple(name for name in ORDER if name in names)
        if key not in self._joined:
            self._joined[key] = self._make_axis(key, names)
        return self._joined[key]

    def known_axes(self) -> list[Axis]:
        """The axes that have been asked for so far, joined ones included."""
        return list(self._joined.values())

    def _make_axis(self, key: tuple[str, ...], names: tuple[str, ...]) -> Axis:
        # Fix this rank's position on every other axis; what is left over are the axis' ranks.
        position = (self._grid == self.rank).nonzero()[0].tolist()
        where = zip(ORDER, position, strict=True)
        index = tuple(slice(None) if name in key else at for name, at in where)
        ranks = self._grid[index].flatten().tolist()

        def group() -> dist.ProcessGroup:
            wide = tuple(name for name in key if self.sizes[name] > 1)
            if self._device_mesh is None or not wide:
                return _group_of_one(self.rank)
            if len(wide) == 1:
                return self._device_mesh.get_group(wide[0])
            return self._device_mesh[wide]._flatten().get_group()

        made: Callable[[], dist.ProcessGroup] = group
        if len(ranks) > 1:
            ready = group()  # collective: now, while every rank is here
            made = lambda: ready  # noqa: E731
        return Axis("-".join(key[::-1] or names), ranks, ranks.index(self.rank), made)

    tp = property(lambda self: self.axis("tp"), doc="tensor parallel: parts of one matrix")
    cp = property(lambda self: self.axis("cp"), doc="context parallel: parts of one sequence")
    dp = property(lambda self: self.axis("dp"), doc="data parallel: parts of one batch")
    pp = property(lambda self: self.axis("pp"), doc="pipeline parallel: parts of one stack")
    ep = property(lambda self: self.axis("ep"), doc="expert parallel: a part of dp")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in reversed(self.sizes.items()))
        return f"Mesh(rank {self.rank} of {self.world_size}: {sizes}, on {self.device})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a mesh lives in its rank and cannot be sent: use the one your function is given, "
            "return numbers and tensors"
        )


def _group_of_one(rank: int) -> dist.ProcessGroup:
    """A ProcessGroup of this rank alone, for direct torch calls on an axis of size 1."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.new_group([rank], use_local_synchronization=True)


def check_sizes(**sizes: int) -> dict[str, int]:
    """The sizes as given, or a ValueError that names the axis and what is allowed."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r}: an axis has a whole number of ranks, at least 1")
        if size > 1 and name in _NOT_BUILT:
            raise ValueError(f"{name}={size}: the axis {name} is not built yet; leave it at 1")
    return sizes


def single(device: str | torch.device = "cpu") -> Mesh:
    """A mesh of one rank in this very process: try a layer in a plain cell, with a debugger."""
    return Mesh({}, 0, torch.device(device))


def connect(tp: int = 1, pp: int = 1, dp: int | None = None) -> Mesh:
    """The mesh under torchrun or srun: one process a rank, on any number of machines.

    dp takes the ranks that tp and pp leave over. Raises ValueError where they do not divide the
    number of processes, RuntimeError where srun gives no address to meet at. A plain process is a
    world of one.
    """
    check_sizes(tp=tp, pp=pp, dp=1 if dp is None else dp)
    rank, world_size, local = _process_numbers()
    rest, left = divmod(world_size, tp * pp)
    wanted = rest if dp is None else dp
    if left or wanted != rest:
        asked = f"tp={tp}, pp={pp}" + ("" if dp is None else f", dp={dp}")
        raise ValueError(
            f"{asked} does not make {world_size} process(es): start {tp * pp * (dp or 1)} "
            f"(torchrun --nproc-per-node {tp * pp * (dp or 1)} ...), or use minimegatron.launch"
        )
    gpus = torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    device = torch.device("cuda", local % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        # NCCL refuses two ranks on one GPU: ranks that share one speak gloo.
        backend = "nccl" if gpus >= max(here, local + 1) else "gloo"
        dist.init_process_group(
            backend, init_method=_meeting_place(), rank=rank, world_size=world_size, timeout=WAIT
        )
    return Mesh({"tp": tp, "dp": wanted, "pp": pp}, rank, device)


def _process_numbers() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) as torchrun or srun tells them."""
    for rank, world, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ):
        if rank in os.environ and world in os.environ:
            env = os.environ
            return int(env[rank]), int(env[world]), int(env.get(local, env[rank]))
    return 0, 1, 0


def _meeting_place() -> str:
    env: dict[str, Any] = dict(os.environ)
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return "env://"
    if env.get("SLURM_NNODES", "1") == "1" and "SLURM_JOB_ID" in env:
        # One machine: a file named after the job step serves, and no port is needed.
        name = f"minimegatron-{env['SLURM_JOB_ID']}-{env.get('SLURM_STEP_ID', '0')}"
        return (Path(env.get("TMPDIR") or "/tmp") / name).resolve().as_uri()
    raise RuntimeError(
        "srun on several machines needs a place to meet; put this before srun:\n"
        "  export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) "
        "MASTER_PORT=29500"
    )
