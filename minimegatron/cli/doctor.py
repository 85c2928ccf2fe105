"""`minimegatron doctor`: does this machine have what the course needs, and what to do if not.

Each check is a function of what was observed, so that its failure can be tried on a healthy
machine; `observe` is the only place that looks at the machine itself.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

PYTHON_RANGE = ((3, 11), (3, 15))
OLDEST_TORCH = (2, 10)
MEMORY_FOR_FOUR_RANKS = 1.5e9  # bytes: about 0.3 GB a rank with torch imported, and the notebook
SHARED_MEMORY = 60e6  # bytes: NCCL's buffers between the ranks of one machine


@dataclass(frozen=True)
class Check:
    """One line of the report. `cure` is empty where all is well; a `note` does not fail the run."""

    name: str
    found: str
    cure: str = ""
    note: bool = False

    @property
    def ok(self) -> bool:
        return not self.cure or self.note


def check_python(version: tuple[int, ...]) -> Check:
    """The interpreter's version against the range that pyproject.toml states."""
    found = ".".join(map(str, version[:3]))
    if PYTHON_RANGE[0] <= version[:2] < PYTHON_RANGE[1]:
        return Check("Python", found)
    return Check("Python", found, "use Python 3.11 to 3.14: make venv PYTHON=python3.12")


def check_torch(version: str | None) -> Check:
    """torch's version, None where it cannot be imported."""
    if version is None:
        return Check("torch", "cannot be imported", "make venv, then .venv/bin/minimegatron doctor")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers >= OLDEST_TORCH:
        return Check("torch", version)
    return Check("torch", version, "minimegatron needs torch 2.10 or newer: make venv")


def check_backends(gloo: bool, nccl: bool, gpus: int) -> Check:
    """gloo carries messages between CPU ranks and shared GPUs, NCCL between GPUs of their own."""
    names = [name for name, there in (("gloo", gloo), ("nccl", nccl)) if there]
    found = ", ".join(names) or "none"
    if not gloo:
        return Check(
            "backends", found, "this torch has no gloo: make clean venv takes PyTorch's build"
        )
    if gpus > 1 and not nccl:
        return Check(
            "backends",
            found,
            "ranks cannot have a GPU each without NCCL: make venv TORCH=default (Linux)",
            note=True,
        )
    return Check("backends", found)


def check_cores(cores: int) -> Check:
    """The processor cores that this process may use."""
    if cores >= 2:
        return Check("cores", str(cores))
    return Check(
        "cores", str(cores), "everything works on one core, slowly: give the machine two", note=True
    )


def check_memory(free: float | None) -> Check:
    """Free memory in bytes, None where this platform does not tell."""
    if free is None:
        return Check("free memory", "not told by this platform")
    found = f"{free / 1e9:.1f} GB"
    if free >= MEMORY_FOR_FOUR_RANKS:
        return Check("free memory", found)
    return Check(
        "free memory",
        found,
        "four ranks need about 1.5 GB: close other programs, or use fewer ranks",
    )


def check_shared_memory(free: float | None) -> Check:
    """Free space of /dev/shm in bytes, None where there is none (macOS needs none)."""
    if free is None:
        return Check("shared memory", "not used on this platform")
    found = f"{free / 1e6:.0f} MB"
    if free >= SHARED_MEMORY:
        return Check("shared memory", found)
    return Check("shared memory", found, "empty /dev/shm; start a container with --shm-size=1g")


def check_gpus(names: list[str], driver: bool) -> Check:
    """The GPUs that torch sees; `driver` tells whether the machine has NVIDIA's driver."""
    if names:
        return Check("GPUs", f"{len(names)} x {names[0]}")
    if driver:
        return Check(
            "GPUs",
            "a driver, but torch sees no GPU",
            "to use it, take torch's CUDA build: make clean venv TORCH=default",
            note=True,
        )
    return Check("GPUs", "none: ranks run on the CPU, as every lesson expects")


def check_temporary_files(folder: str) -> Check:
    """Ranks meet through a file in `folder`."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return Check(
            "temporary files",
            f"{folder}: {error.strerror}",
            "make room there, or name another folder: export TMPDIR=~/tmp",
        )
    return Check("temporary files", folder)


def check_launch(total: Callable[[], list[float]]) -> Check:
    """Two ranks that add 1 and 2: `total` returns what each of them holds afterwards."""
    start = time.perf_counter()
    try:
        sums = total()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Check(
            "2 ranks, one all-reduce",
            lines[-1],
            "run it alone for the whole message: python -c 'import minimegatron as mm; "
            "mm.launch(print, tp=2)'. A firewall or an odd host name? "
            "export GLOO_SOCKET_IFNAME=lo (macOS: lo0)",
        )
    if sums != [3.0, 3.0]:
        return Check(
            "2 ranks, one all-reduce",
            f"1 + 2 came out as {sums}",
            "this torch computes wrongly here: make clean venv",
        )
    return Check("2 ranks, one all-reduce", f"in {time.perf_counter() - start:.1f} s")


def add_one_and_two() -> list[float]:
    """Each of two ranks contributes its number, rank 0 one and rank 1 two."""
    import torch

    import minimegatron as mm

    def one_rank(mesh: mm.Mesh) -> float:
        return float(mm.all_reduce(torch.tensor([mesh.rank + 1.0], device=mesh.device), mesh.tp))

    return mm.launch(one_rank, tp=2)


def free_memory() -> float | None:
    """Bytes that programs can still take, as Linux tells it; None elsewhere."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024.0 if match else None


def observe() -> Iterator[Check]:
    """Looks at this machine, the cheap things first."""
    yield check_python(sys.version_info[:3])
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        yield check_torch(None)
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    there = dist.is_available()
    yield check_torch(torch.__version__)
    yield check_backends(
        there and dist.is_gloo_available(), there and dist.is_nccl_available(), len(names)
    )
    affinity = getattr(os, "sched_getaffinity", None)
    yield check_cores(len(affinity(0)) if affinity else os.cpu_count() or 1)
    yield check_memory(free_memory())
    shm = Path("/dev/shm")
    yield check_shared_memory(shutil.disk_usage(shm).free if shm.is_dir() else None)
    yield check_gpus(names, shutil.which("nvidia-smi") is not None)
    yield check_temporary_files(tempfile.gettempdir())
    yield check_launch(add_one_and_two)


def run(console: Console | None = None, checks: Callable[[], Iterator[Check]] = observe) -> int:
    """Prints a line per check as it is made; returns the exit code, 1 where one failed."""
    console = console or Console(highlight=False)
    console.print(f"minimegatron doctor on {platform.system()} {platform.machine()}")
    failed = 0
    for check in checks():
        failed += not check.ok
        mark = "[red]✗" if not check.ok else "[yellow]!" if check.cure else "[green]✓"
        row = Table.grid(Column(width=2), Column(width=24), Column())
        row.add_row(mark, check.name, escape(check.found))
        if check.cure:
            row.add_row("", "", f"→ {escape(check.cure)}")
        console.print(row)
    if failed:
        console.print(f"[red]{failed} failed[/]: the arrows say what to do.")
    else:
        console.print("Everything the course needs is here.")
    return int(failed > 0)
