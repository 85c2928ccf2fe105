"""In a notebook's kernel: messages that name cells, interrupts, and a kernel that is killed."""

from __future__ import annotations

import os
import signal
import time

import pytest
from jupyter_client.manager import start_new_kernel

SETUP = "import minimegatron as mm, os, time\nclass Mine:\n    pass"


class _Kernel:
    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def start(self, code):
        return self.client.execute(code)

    def finish(self, message, timeout=60):
        """(stdout, stderr, result, error) of the cell."""
        text = {"stdout": "", "stderr": "", "result": "", "error": ""}
        while True:
            reply = self.client.get_iopub_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") != message:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind == "stream":
                text[content["name"]] += content["text"]
            elif kind == "execute_result":
                text["result"] = content["data"]["text/plain"]
            elif kind == "error":
                text["error"] = "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return text

    def run(self, code):
        return self.finish(self.start(code))


@pytest.fixture(scope="module")
def kernel():
    kernel = _Kernel()
    kernel.run(SETUP)
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_functions_and_classes_of_cells_work_on_ranks(kernel):
    kernel.run("def make(mesh):\n    print('made')\n    return Mine()")
    text = kernel.run("[isinstance(thing, Mine) for thing in mm.launch(make, tp=2)]")
    assert text["result"] == "[True, True]" and text["stderr"] == ""
    assert text["stdout"] == "[rank 0] made\n[rank 1] made\n"


def test_an_error_names_the_line_of_the_cell_and_nothing_else(kernel):
    text = kernel.run("def bad(mesh):\n    x = 1\n    return x / 0\n\nmm.launch(bad, tp=2)")
    assert text["error"].splitlines() == [
        "RankError: rank 0 of 2 raised ZeroDivisionError",
        "",
        "Traceback (most recent call last):",
        "  your cell, line 3, in bad",
        "    return x / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert text["stderr"] == ""


def test_an_interrupt_stops_the_ranks_and_leaves_the_kernel_usable(kernel):
    kernel.run("pids = mm.launch(lambda mesh: os.getpid(), tp=2)")
    cell = kernel.start("mm.launch(lambda mesh: time.sleep(60), tp=2)")
    time.sleep(0.5)
    begin = time.monotonic()
    kernel.manager.interrupt_kernel()
    text = kernel.finish(cell)
    assert time.monotonic() - begin < 3
    assert text["error"].startswith("KeyboardInterrupt") and "minimegatron" not in text["error"]
    assert kernel.run("mm.launch(lambda mesh: mesh.rank, tp=2)")["result"] == "[0, 1]"
    gone = "[not os.path.exists(f'/proc/{p}') for p in pids]"
    assert kernel.run(gone)["result"] == "[True, True]"


def test_a_cell_run_twice_and_out_of_order_works(kernel):
    kernel.run("def later(mesh):\n    return 1")
    for _ in range(2):
        assert kernel.run("mm.launch(later, tp=2)")["result"] == "[1, 1]"
    kernel.run("def later(mesh):\n    return 2")
    assert kernel.run("mm.launch(later, tp=2)")["result"] == "[2, 2]"


def _alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks processes up in /proc")
@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_kernel_leaves_no_process_behind(busy):
    kernel = _Kernel()
    kernel.run(SETUP)
    find = "str(mm.launch(lambda mesh: (os.getpid(), os.getppid()), tp=2))"
    found = eval(eval(kernel.run(find)["result"]))
    processes = {process for pair in found for process in pair}
    if busy:
        kernel.start("mm.launch(lambda mesh: time.sleep(60), tp=2)")
        time.sleep(0.5)
    os.kill(kernel.manager.provisioner.process.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while any(map(_alive, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [process for process in processes if _alive(process)]
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)
