"""Each check of `minimegatron doctor` passes on what is fine and names a cure for what is not."""

from __future__ import annotations

import os
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from minimegatron.cli import app, doctor
from minimegatron.cli.doctor import Check

FINE = {
    "python": doctor.check_python((3, 12, 1)),
    "torch": doctor.check_torch("2.13.0+cpu"),
    "torch with two digits": doctor.check_torch("2.10.1"),
    "backends": doctor.check_backends(gloo=True, nccl=False, gpus=0),
    "cores": doctor.check_cores(2),
    "memory": doctor.check_memory(8e9),
    "memory of macOS": doctor.check_memory(None),
    "shared memory": doctor.check_shared_memory(1e9),
    "no /dev/shm": doctor.check_shared_memory(None),
    "no GPU": doctor.check_gpus([], driver=False),
    "GPUs": doctor.check_gpus(["H100", "H100"], driver=True),
    "launch": doctor.check_launch(lambda: [3.0, 3.0]),
}
NOTES = {
    "one core": (doctor.check_cores(1), "two"),
    "GPUs without NCCL": (doctor.check_backends(gloo=True, nccl=False, gpus=2), "TORCH=default"),
    "a driver without CUDA torch": (doctor.check_gpus([], driver=True), "TORCH=default"),
}


def refuse() -> list[float]:
    raise RuntimeError("[rank 0] no route to host\nConnection refused")


FAILURES = {
    "old Python": (doctor.check_python((3, 10, 4)), "PYTHON=python3"),
    "Python too new": (doctor.check_python((3, 15, 0)), "PYTHON=python3"),
    "old torch": (doctor.check_torch("2.8.1"), "make venv"),
    "no torch": (doctor.check_torch(None), "make venv"),
    "no gloo": (doctor.check_backends(gloo=False, nccl=True, gpus=1), "make clean venv"),
    "little memory": (doctor.check_memory(5e8), "fewer ranks"),
    "little shared memory": (doctor.check_shared_memory(1e6), "--shm-size"),
    "ranks cannot start": (doctor.check_launch(refuse), "GLOO_SOCKET_IFNAME"),
    "ranks add wrongly": (doctor.check_launch(lambda: [3.0, 2.0]), "make clean venv"),
}


@pytest.mark.parametrize("check", FINE.values(), ids=FINE)
def test_what_is_fine_passes_without_a_cure(check: Check) -> None:
    assert check.ok and not check.cure


@pytest.mark.parametrize("check, cure", NOTES.values(), ids=NOTES)
def test_what_only_slows_the_course_down_is_noted(check: Check, cure: str) -> None:
    assert check.ok and cure in check.cure


@pytest.mark.parametrize("check, cure", FAILURES.values(), ids=FAILURES)
def test_what_stops_the_course_fails_with_a_cure(check: Check, cure: str) -> None:
    assert not check.ok and cure in check.cure


def test_a_folder_that_takes_no_file_fails_with_a_cure(tmp_path: os.PathLike[str]) -> None:
    missing = os.path.join(tmp_path, "missing")
    assert doctor.check_temporary_files(str(tmp_path)).ok
    check = doctor.check_temporary_files(missing)
    assert missing in check.found and not check.ok and "TMPDIR" in check.cure


def test_a_failed_launch_shows_its_last_line() -> None:
    assert doctor.check_launch(refuse).found == "Connection refused"


def report(*checks: Check) -> tuple[int, str]:
    out = StringIO()
    code = doctor.run(Console(file=out, width=80), lambda: iter(checks))
    return code, out.getvalue()


def test_the_report_has_a_line_a_check_and_exit_code_0_where_nothing_failed() -> None:
    code, text = report(Check("cores", "1", "get two", note=True), Check("torch", "2.13.0"))
    assert code == 0
    assert "! cores" in text and "→ get two" in text and "✓ torch" in text


def test_the_report_has_exit_code_1_and_the_cure_of_what_failed() -> None:
    code, text = report(Check("torch", "[none]", "make venv"), Check("cores", "2"))
    assert code == 1
    assert "✗ torch" in text and "[none]" in text and "→ make venv" in text and "✓ cores" in text


def test_this_machine_passes() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "2 ranks, one all-reduce" in result.output
