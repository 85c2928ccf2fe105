"""Named axes over the ranks: who talks to whom.

Megatron splits a job of tp*cp*dp*pp ranks along named axes; the tensor-parallel rank varies
fastest, then cp, dp, pp (`megatron/core/parallel_state.py`, `RankGenerator` with order
tp-cp-ep-dp-pp), so that the ranks which talk most sit in one machine. Here the grid is torch's
DeviceMesh; a layer is given the one axis it needs and reaches for nothing else.
"""

import functools
import itertools
import math
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

# Slowest first: the order of the DeviceMesh's dimensions.
ORDER = ("pp", "dp", "cp", "tp")
_NOT_BUILT = ("cp", "ep")
# The ranks' own watchdog ends a wait long before (`launch`); torch's would hide the cause.
WAIT = timedelta(days=7)

_NAMES: dict[Any, str] = {}  # of the axes of this process, by their group


class _Local:
    """What means something in its own rank only."""

    def __reduce__(self) -> NoReturn:
        advice = "use the one that your function is given, return numbers and tensors"
        raise TypeError(f"{self!r} lives in its rank and cannot be sent: {advice}")


class Axis(_Local):
    """The ranks this rank talks to along one axis.

    `size` ranks, of which this one is number `rank`; `ranks` are their global numbers, in order;
    `group` is the ProcessGroup, which `make_group()` makes on first use.
    """

    def __init__(self, name: str, ranks: list[int], rank: int, make_group: Any) -> None:
        self.name, self.ranks, self.rank, self.size = name, ranks, rank, len(ranks)
        self._make_group = make_group
        self.exchanges = itertools.count()  # numbers pairwise exchanges: all its ranks count alike

    @functools.cached_property
    def group(self) -> dist.ProcessGroup:
        """The ProcessGroup for direct calls of torch.distributed."""
        return self._make_group()

    def __repr__(self) -> str:
        return f"Axis({self.name}: rank {self.rank} of {self.size}, ranks {self.ranks})"


class Mesh(_Local):
    """The ranks as a grid with the axes pp, dp, cp, tp (tp fastest), and ep inside dp."""

    def __init__(self, sizes: dict[str, int], rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        self.sizes = {name: sizes.get(name, 1) for name in ORDER}
        self.world_size = math.prod(self.sizes.values())
        self._joined: dict[tuple[str, ...], Axis] = {}
        wide = {name: size for name, size in self.sizes.items() if size > 1}
        if wide:
            kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
            names, shape = tuple(wide), tuple(wide.values())
            self._device_mesh = init_device_mesh(kind, shape, mesh_dim_names=names)

    def axis(self, *names: str) -> Axis:
        """One axis, or several joined: `mesh.axis("tp", "pp")`. All ranks must ask for it."""
        unknown = [name for name in names if name not in (*ORDER, "ep")]
        if unknown or not names:
            raise ValueError(f"mesh.axis takes names of {', '.join((*ORDER, 'ep'))}, not {unknown}")
        key = tuple(name for name in ORDER if name in names)
        if key not in self._joined:
            axis = self._make_axis(key, "-".join(key[::-1] or names))
            if axis.size > 1:  # its group is made by all its ranks together: now
                _NAMES[axis.group] = axis.name
            self._joined[key] = axis
        return self._joined[key]

    def _make_axis(self, key: tuple[str, ...], name: str) -> Axis:
        # Fix this rank's position on every other axis; what is left over are the axis' ranks.
        grid = torch.arange(self.world_size, device="cpu").reshape(*self.sizes.values())
        position = (grid == self.rank).nonzero()[0].tolist()
        where = zip(ORDER, position, strict=True)
        index = tuple(slice(None) if name in key else at for name, at in where)
        ranks = grid[index].flatten().tolist()

        def make_group() -> dist.ProcessGroup:
            wide = tuple(name for name in key if self.sizes[name] > 1)
            if not wide:
                return _group_of_one(self.rank)
            if len(wide) == 1:
                return self._device_mesh.get_group(wide[0])
            return self._device_mesh[wide]._flatten().get_group()

        return Axis(name, ranks, ranks.index(self.rank), make_group)

    tp = property(lambda self: self.axis("tp"), doc="tensor parallel: parts of one matrix")
    cp = property(lambda self: self.axis("cp"), doc="context parallel: parts of one sequence")
    dp = property(lambda self: self.axis("dp"), doc="data parallel: parts of one batch")
    pp = property(lambda self: self.axis("pp"), doc="pipeline parallel: parts of one stack")
    ep = property(lambda self: self.axis("ep"), doc="expert parallel: a part of dp")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in reversed(self.sizes.items()))
        return f"Mesh(rank {self.rank} of {self.world_size}: {sizes}, on {self.device})"


def axis_name(group: dist.ProcessGroup | None) -> str:
    """The axis that a direct call of torch.distributed goes along; "world" for all ranks."""
    return "world" if group is dist.group.WORLD else _NAMES.get(group, "a group of your own")


def _group_of_one(rank: int) -> dist.ProcessGroup:
    """A ProcessGroup of this rank alone, for direct torch calls on an axis of size 1."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.new_group([rank], use_local_synchronization=True)


def check_sizes(**sizes: int) -> dict[str, int]:
    """The sizes as given, or a ValueError that names the axis and what is allowed."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r}: give a whole number, at least 1")
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
    rank = _told("RANK", "SLURM_PROCID", -1)
    # An allocation of SLURM tells its size to a plain process too, which has no number in it.
    world_size = _told("WORLD_SIZE", "SLURM_NTASKS", 1) if rank >= 0 else 1
    local = _told("LOCAL_RANK", "SLURM_LOCALID", max(0, rank))
    here = _told("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", 1)
    rest, left = divmod(world_size, tp * pp)
    wanted = rest if dp is None else dp
    if left or wanted != rest:
        asked = f"tp={tp}, pp={pp}" + ("" if dp is None else f", dp={dp}")
        raise ValueError(
            f"{asked} does not make {world_size} process(es): start {tp * pp * (dp or 1)} "
            f"(torchrun --nproc-per-node {tp * pp * (dp or 1)} ...), or use minimegatron.launch"
        )
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", local % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        # NCCL refuses two ranks on one GPU: ranks that share one speak gloo.
        backend = "nccl" if gpus >= max(here, local + 1) else "gloo"
        dist.init_process_group(backend, _meeting_place(), WAIT, world_size, rank)
    return Mesh({"tp": tp, "dp": wanted, "pp": pp}, max(0, rank), device)


def _told(torchrun: str, srun: str, otherwise: int) -> int:
    return int(os.environ.get(torchrun, os.environ.get(srun, otherwise)))


def _meeting_place() -> str:
    told = os.environ
    if "MASTER_ADDR" in told and "MASTER_PORT" in told:
        return "env://"
    if told.get("SLURM_NNODES", "1") == "1" and "SLURM_JOB_ID" in told:
        # One machine: a file named after the job step serves, and no port is needed.
        name = f"minimegatron-{told['SLURM_JOB_ID']}-{told.get('SLURM_STEP_ID', '0')}"
        return Path(tempfile.gettempdir(), name).resolve().as_uri()
    raise RuntimeError(
        "srun on several machines needs a place to meet; put this before srun:\n"
        "  export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) "
        "MASTER_PORT=29500"
    )
