"""Launch: results, output, and a clean start for every call."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
import torch.distributed as dist

import minimegatron as mm


def _process(mesh):
    return os.getpid()


def test_results_come_back_in_rank_order_with_tp_fastest():
    def where(mesh):
        return mesh.rank, mesh.tp.rank, mesh.dp.rank, mesh.pp.rank

    expected = [(r, r % 2, r // 2 % 2, r // 4) for r in range(8)]
    assert mm.launch(where, tp=2, dp=2, pp=2) == expected


def test_ranks_stay_alive_between_calls_and_are_not_the_kernel():
    first = mm.launch(_process, tp=2)
    assert mm.launch(_process, tp=2) == first
    assert len({os.getpid(), *first}) == 3


def test_functions_close_over_variables_and_use_classes_defined_beside_them():
    factor = 3

    class Thing:
        def __init__(self, value):
            self.value = value

    def make(mesh, x, y=1):
        return Thing(factor * x + mesh.rank)

    things = mm.launch(make, 2, tp=2)
    assert [thing.value for thing in things] == [6, 7]
    assert all(isinstance(thing, Thing) for thing in things)


def test_tensors_arrive_detached_and_without_the_storage_they_were_a_view_of():
    def make(mesh):
        x = torch.arange(1000.0, requires_grad=True)
        model = torch.nn.Linear(2, 2)
        return (2 * x)[:2], torch.nn.Parameter(torch.ones(1)), model, {"b": x.bfloat16()[3]}

    view, parameter, model, rest = mm.launch(make)[0]
    assert not view.requires_grad and view.untyped_storage().nbytes() == 8
    assert type(parameter) is torch.Tensor and not parameter.requires_grad
    assert isinstance(model.weight, torch.nn.Parameter) and model(torch.ones(1, 2)).shape == (1, 2)
    assert rest["b"].dtype is torch.bfloat16 and rest["b"].item() == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.int16, torch.complex64])
def test_every_kind_of_tensor_travels_both_ways_unchanged(dtype):
    for shape in [(), (0,), (2, 3)]:
        x = torch.ones(shape, dtype=dtype)
        there_and_back = mm.launch(lambda mesh, x: x.mT if x.dim() > 1 else x, x)[0]
        assert torch.equal(there_and_back, x.mT if x.dim() > 1 else x)


def test_output_appears_on_stdout_in_rank_order_with_the_ranks_names(capfd):
    def speak(mesh):
        if mesh.rank == 0:
            time.sleep(0.1)  # rank 1 is ready first and still comes second
        print("hello\nagain")
        os.system("echo from a child")
        sys.stderr.write("an error stream\n")
        warnings.warn("mind the gap", stacklevel=1)
        print("no end of line", end="")

    mm.launch(speak, tp=2)
    out, err = capfd.readouterr()
    said = ["hello", "again", "from a child", "an error stream"]
    for rank in range(2):
        part = out.splitlines()[6 * rank : 6 * rank + 6]
        assert part[:4] == [f"[rank {rank}] {line}" for line in said]
        assert (
            part[4].startswith(f"[rank {rank}] UserWarning: mind the gap (") and "line" in part[4]
        )
        assert part[5] == f"[rank {rank}] no end of line"
    assert err == "" and "/tmp" not in out


def test_one_rank_has_no_prefix(capfd):
    mm.launch(lambda mesh: print("alone"))
    assert capfd.readouterr().out == "alone\n"


def test_rank_0_speaks_while_it_works(monkeypatch):
    heard = []

    class Ear:
        def write(self, text):
            heard.append((time.monotonic(), text))

        def flush(self):
            pass

    def speak(mesh):
        print("first", flush=True)
        time.sleep(0.6)
        print("second", flush=True)

    monkeypatch.setattr(sys, "stdout", Ear())
    mm.launch(speak, tp=2)
    live = [(at, text) for at, text in heard if "[rank 0]" in text]
    assert len(live) == 2 and live[1][0] - live[0][0] > 0.3


def test_every_call_starts_clean_and_with_the_same_seed():
    def state(mesh):
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            os.getcwd(),
            dict(os.environ),
            list(sys.path),
            len(warnings.filters),
            torch.rand(3).tolist(),
            random.random(),
        )

    def disturb(mesh):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(2)
        os.chdir("/")
        os.environ["DISTURBED"] = "1"
        sys.path.insert(0, "nowhere")
        warnings.simplefilter("error")
        sys.stdout = None

    before = mm.launch(state, tp=2)
    mm.launch(disturb, tp=2)
    assert mm.launch(state, tp=2) == before
    assert before[0] == before[1], "every rank gets the same seed"
    assert mm.launch(state, tp=2, seed=1)[0][-2:] != before[0][-2:]
    assert before[0][3] == 1 and mm.launch(state, tp=2, threads=2)[0][3] == 2


def test_ranks_share_the_kernels_folder_path_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEARNERS_OWN", "yes")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    (tmp_path / "lib").mkdir()

    def look(mesh):
        return os.getcwd(), os.environ["LEARNERS_OWN"], sys.path[0]

    assert mm.launch(look)[0] == (str(tmp_path), "yes", str(tmp_path / "lib"))


def _leave_isend(mesh):
    if mesh.rank == 0:
        dist.isend(torch.ones(2), 1)


def _leave_async(mesh):
    if mesh.rank == 0:
        dist.all_reduce(torch.ones(2), async_op=True)


def _leave_thread(mesh):
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()


def _leave_no_group(mesh):
    dist.destroy_process_group()


@pytest.mark.parametrize("leave", [_leave_isend, _leave_async, _leave_thread, _leave_no_group])
def test_ranks_that_were_left_unfit_are_replaced(leave):
    before = mm.launch(_process, tp=2)
    mm.launch(leave, tp=2)
    after = mm.launch(_process, tp=2)
    assert set(before).isdisjoint(after)
    assert mm.launch(lambda mesh: mm.all_reduce(torch.ones(1), mesh.tp).item(), tp=2) == [2, 2]


def test_matched_messages_leave_ranks_fit():
    def exchange(mesh):
        other = 1 - mesh.rank
        work = dist.isend(torch.ones(2), other)
        dist.recv(torch.zeros(2), other)
        work.wait()

    before = mm.launch(_process, tp=2)
    mm.launch(exchange, tp=2)
    assert mm.launch(_process, tp=2) == before


def test_calls_from_several_threads_queue_up():
    results = {}

    def call(number):
        def fn(mesh):
            return mm.all_reduce(torch.tensor(number), mesh.tp).item()

        results[number] = mm.launch(fn, tp=2)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [2 * n, 2 * n] for n in range(4)}


def test_shutdown_ends_the_ranks_and_the_next_call_works():
    processes = mm.launch(_process, tp=2)
    mm.shutdown()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert set(mm.launch(_process, tp=2)).isdisjoint(processes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tp": 0}, ValueError, "tp=0"),
        ({"dp": -1}, ValueError, "dp=-1"),
        ({"tp": 1.5}, ValueError, "tp=1.5"),
        ({"cp": 2}, ValueError, "cp is not built yet"),
        ({"ep": 2}, ValueError, "ep is not built yet"),
        ({"tp": 100_000}, ValueError, "ask for"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"device": "tpu"}, ValueError, "'auto', 'cpu' or 'cuda'"),
        ({"using": {"no_such_piece": print}}, ValueError, "no_such_piece"),
        ({"using": {"f": 3}}, TypeError, "not a function or class"),
        ({"using": print}, TypeError, "a dict such as"),
        ({"using": {"all_redduce": print}}, ValueError, "all_reduce"),
        ({"using": {"f": torch.autograd.Function}}, TypeError, "give Function.apply"),
    ],
)
def test_impossible_wishes_are_refused_by_name(options, error, words):
    with pytest.raises(error, match=words):
        mm.launch(lambda mesh: None, **options)


def test_what_cannot_be_sent_is_refused():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot be sent to the ranks"):
        mm.launch(lambda mesh: lock)
    with pytest.raises(TypeError, match="function"):
        mm.launch(3)
    with pytest.raises(TypeError, match=r"launch gives <lambda>\(\) the mesh"):
        mm.launch(lambda: 3)
    with pytest.raises(TypeError, match="the mesh and 2 more: too many"):
        mm.launch(lambda mesh, x: 3, 1, 2)
    mesh = mm.single()
    with pytest.raises(TypeError, match="lives in its rank"):
        mm.launch(lambda _: mesh)


def test_an_unguarded_script_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('top')\nimport minimegatron as mm\nprint(mm.launch(lambda mesh: mesh.rank, tp=2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("top\n[0, 1]\n", "")


def test_ranks_are_spawned_where_there_is_no_forkserver(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from minimegatron.ranks import server\n"
        "server.METHOD = 'spawn'\n"
        "import minimegatron as mm, torch\n"
        "print(mm.launch(lambda m: mm.all_reduce(torch.ones(1), m.tp).item(), tp=2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[2.0, 2.0]\n", "")
