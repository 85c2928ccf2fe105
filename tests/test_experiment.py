"""`minimegatron experiment`: long runs are stored so that anybody can check and repeat them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from typer.testing import CliRunner

import minimegatron as mm
from minimegatron import experiments
from minimegatron.cli import app
from minimegatron.cli.experiment import command
from minimegatron.cli.train import Settings
from minimegatron.experiments import paper_step, train_gpt

SMALL = Settings(steps=4, batch=4, seq=16, hidden=32, layers=1, vocab=260)


def invoke(*arguments):
    result = CliRunner().invoke(app, ["experiment", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The stored document of a small run of the command."""
    file = tmp_path_factory.mktemp("experiment") / "small.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gpt.run, "__defaults__", (SMALL,))
        code, output = invoke("train_gpt", "--out", file)
    assert code == 0, output
    assert all(f"{split}, 4 steps" in output for split in train_gpt.SPLITS)
    return json.loads(file.read_text())


def test_every_split_has_the_losses_of_one_process(small):
    wanted = small["runs"]["tp=1"]
    for split, run in small["runs"].items():
        assert run["losses"] == pytest.approx(wanted["losses"], abs=1e-5), split
        assert [step for step, _ in run["validation"]] == [1, 2, 3, 4]
        assert run["text"].startswith("The")
    assert len(wanted["losses"]) == 4
    assert small["text_before"].startswith("The")


def test_the_first_batches_are_enough_to_repeat_the_first_steps(small):
    batches = torch.tensor(small["first_batches"])
    assert batches.shape == (4, SMALL.batch, SMALL.seq + 1)
    torch.manual_seed(SMALL.seed)
    config = mm.GPTConfig(small["vocab_size"], SMALL.seq, SMALL.hidden, SMALL.layers, SMALL.heads)
    loss = mm.GPT(config).loss(batches[0, :, :-1], batches[0, :, 1:])
    assert float(loss.detach()) == pytest.approx(small["runs"]["tp=1"]["losses"][0], abs=1e-5)


def test_a_result_names_its_command_settings_and_versions(small):
    assert small["command"] == "minimegatron experiment train_gpt --out small.json"
    assert small["versions"].keys() == {"python", "minimegatron", "torch", "tokenizers"}
    assert small["versions"]["minimegatron"] == mm.__version__
    assert small["settings"] == dataclasses.asdict(SMALL)


def test_what_is_stored_was_made_with_the_settings_that_the_command_has_now():
    stored = experiments.stored("train_gpt")
    assert Settings(**stored["settings"]) == train_gpt.SETTINGS  # later options at their default
    assert stored["runs"].keys() == train_gpt.SPLITS.keys()
    assert experiments.file_of("train_gpt").stat().st_size < 100_000
    for run in stored["runs"].values():
        assert len(run["losses"]) == train_gpt.SETTINGS.steps
        assert run["losses"][0] == pytest.approx(math.log(stored["vocab_size"]), abs=0.1)
        assert run["validation"][-1][1] < stored["unigram_entropy"]


def test_json_has_a_line_for_each_entry_and_one_for_each_list():
    value = {"runs": {"a": [1, 2], "b": "ü"}, "n": 3}
    text = experiments.as_json(value)
    assert json.loads(text) == value
    assert text == '{\n "runs": {\n  "a": [1,2],\n  "b": "ü"\n },\n "n": 3\n}'


def test_the_stored_command_names_no_folder_of_a_machine(tmp_path):
    assert command("x", None) == "minimegatron experiment x"
    assert command("x", tmp_path / "y.json") == "minimegatron experiment x --out y.json"


def test_without_a_name_the_experiments_are_listed():
    code, output = invoke()
    assert code == 0
    assert output.startswith("train_gpt: a GPT on real text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "error: there is no experiment 'speed'; there is train_gpt"),
        (["train_gpt", "--out", "no/such/x.json"], "error: no/such/x.json: there is no folder"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_is_run(arguments, message, monkeypatch):
    monkeypatch.setattr(train_gpt, "run", None)
    code, output = invoke(*arguments)
    assert code == 1
    assert output.startswith(message)


def test_the_papers_step_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, output = invoke("paper_step")
    assert code == 1
    assert "error: paper_step trains 1.2 billion parameters and needs one NVIDIA GPU" in output
    assert "about 45 GB" in output and "torch sees none here" in output


def test_the_papers_step_says_which_gpu_is_too_small(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA T4")
    small = type("Properties", (), {"total_memory": 16e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: small)
    code, output = invoke("paper_step")
    assert code == 1
    assert "NVIDIA T4 has 16 GB" in " ".join(output.split())


def test_the_papers_configuration_is_the_one_of_table_1():
    assert paper_step.parameter_count(paper_step.PAPER) == pytest.approx(1.2e9, rel=0.05)


def test_the_papers_step_runs_on_a_cpu_with_a_tiny_model(monkeypatch):
    tiny = mm.GPTConfig(64, 16, 32, 2, 2)
    monkeypatch.setattr(paper_step, "peak_of", lambda device: 1e10)
    said = []
    result = paper_step.run(said.append, tiny, batch=2, device="cpu")
    assert json.loads(json.dumps(result)) == result
    assert len(result["step_seconds"]) == paper_step.STEPS
    assert 0 < result["mfu"] < 1
    flops = result["tokens_per_second"] * paper_step.flops_per_token(tiny)
    assert result["mfu"] == pytest.approx(flops / 1e10, abs=1e-4)
    assert result["peak_memory_bytes"] is None, "a CPU does not count it"
    kinds = result["seconds_by_kind"]
    assert all(kinds[kind] > 0 for kind in (*paper_step.KINDS, paper_step.OTHER))
    assert "of the step" in result["limit"] and result["limit"] == said[-1]


def test_what_limits_is_the_largest_part_beyond_the_products_at_peak():
    kinds = {"matrix products": 0.5, "attention": 0.3, paper_step.IDLE: 0.2}
    assert paper_step.limit(kinds, 1.0, None) == "matrix products: 50% of the step"
    assert paper_step.limit(kinds, 1.0, 0.4) == "attention: 30% of the step"
    assert "products beyond their time at peak: 40%" in paper_step.limit(kinds, 1.0, 0.1)


def test_what_nobody_has_stored_says_which_command_stores_it(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "file_of", lambda name: tmp_path / name)
    with pytest.raises(ValueError, match="minimegatron experiment paper_step"):
        experiments.stored("paper_step")
