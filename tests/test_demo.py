"""`minimegatron demo` and `minimegatron train`, as a user meets them."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from minimegatron.cli import app, demo, train
from minimegatron.cli import main as cli
from minimegatron.cli.train import Settings
from minimegatron.ranks.launch import launch

SMALL = Settings(steps=5, batch=4, seq=16, hidden=32, layers=1, vocab=260)
OPTIONS = "--steps 5 --batch 4 --seq 16 --hidden 32 --layers 1 --vocab 260".split()


def invoke(*arguments):
    result = CliRunner().invoke(app, ["train", *OPTIONS, *map(str, arguments)])
    return result.exit_code, result.output


def numbers(output):
    """The losses in the output."""
    return re.findall(r"(?:training|validation) loss ([\d.]+)", output.replace("\n", " "))


def test_the_demo_compares_four_ways_and_writes(capsys, tmp_path):
    assert demo.run(settings=SMALL, plot=tmp_path / "losses.png") == 0
    output = capsys.readouterr().out
    rows = {
        name: re.search(rf"^ *{re.escape(name)} .*\d\.\d{3}.*", output, re.MULTILINE)
        for name in demo.SPLITS
    }
    assert all(rows.values()), output
    # L=1: tp 4L+5 and the norm, dp the number of tokens and one bucket.
    for name, sent in (("1 process", 0), ("tp=2", 10), ("dp=2", 2), ("tp=2 x dp=2", 12)):
        assert re.search(rf" {sent} ", rows[name][0]), (name, rows[name][0])
    assert "e-1" in rows["tp=2"][0]  # the parity error, far below 1e-10
    assert re.search(r"Validation loss \d", output)
    assert "unigram entropy" in output
    assert "The" in output.split("it writes:")[1]
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_takes_a_pipeline_beside_the_four(capsys):
    settings = dataclasses.replace(SMALL, layers=2, microbatches=2, schedule="zb_h1")
    assert demo.run(settings=settings, pp=2) == 0
    row = re.search(r"^ *pp=2 zb_h1 .*\d\.\d{3}.*", capsys.readouterr().out, re.MULTILINE)
    # A rank's: 2 micro-batches to its neighbour, the tied embedding, the norm.
    assert row and "e-1" in row[0] and re.search(r" 4 ", row[0]), row
    assert demo.run(settings=SMALL, pp=2) == 1
    assert "num_layers 1 does not divide by pp=2" in capsys.readouterr().out


def test_train_gives_the_same_losses_at_every_split():
    stages = ("--layers", 2, "--pp", 2, "--microbatches", 2)
    results = [
        invoke(),
        invoke("--tp", 2),
        invoke("--dp", 2, "--microbatches", 2),
        invoke("--layers", 2),
        invoke(*stages, "--schedule", "gpipe"),
        invoke(*stages, "--chunks", 2, "--schedule", "interleaved", "--layers", 4)[:1] + ("",),
    ]
    assert [code for code, _ in results] == [0] * 6, results
    found = [numbers(output) for _, output in results]
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4] != found[0]
    assert "tp=2 x dp=1" in results[1][1]
    assert "tokens/s" in results[0][1]


def sent(tp=1, dp=1, **features):
    """What a rank sends in the last step: (op, axis, phase) -> bytes."""
    settings = dataclasses.replace(SMALL, **features)
    corpus = train.make_settings_corpus(settings, None)
    [outcome, *_] = launch(train.train_on, settings, corpus, None, tp=tp, dp=dp)
    records = outcome.history.ledger.records
    return {(r.op, r.axis, r.phase): r.bytes for r in records}


@pytest.mark.parametrize(
    ("split", "features", "message"),
    [
        ({"tp": 2}, {"sequence_parallel": True}, ("reduce_scatter", "tp", "forward")),
        ({"dp": 2}, {"zero": 1}, ("reduce_scatter", "dp", "backward")),
        ({"dp": 2}, {"zero": 3, "recompute": "full"}, ("all_gather", "dp", "forward")),
        ({"dp": 2}, {"compress": "1-bit"}, ("all_gather", "dp", "backward")),
        ({"tp": 2}, {"precision": "bf16"}, ("all_reduce", "tp", "backward")),  # half the bytes
    ],
    ids=str,
)
def test_every_option_of_a_run_changes_what_is_sent(split, features, message):
    plain = sent(**split)
    changed = sent(**split, **features)
    assert message in changed
    assert message not in plain or changed[message] == plain[message] / 2


def test_a_run_says_what_is_not_plain_in_it_and_what_of_that_is_idle():
    code, output = invoke("--precision", "bf16", "--zero", 2, "--sequence-parallel")
    assert code == 0, output
    said = " ".join(output.split())
    assert "precision=bf16, zero=2 (nothing to do at this split), sequence-parallel (noth" in said
    code, output = invoke("--precision", "fp16")
    assert code == 0 and "5 steps skipped" in output, "2^32 is too large a scale, and it says so"


def test_train_works_under_torchrun_with_the_same_options():
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "minimegatron.cli", "train", *OPTIONS, "--tp", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert numbers(done.stdout) == numbers(invoke()[1])
    assert done.stdout.count("tokens/s") == 1  # one rank speaks for all


def test_train_reads_a_file_and_draws_the_losses(tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five six seven " * 100)
    plot = tmp_path / "losses.svg"
    code, output = invoke(
        "--data", tmp_path / "text.txt", "--plot", plot, "--tokenizer", "bytes", "--seed", 3
    )
    assert code == 0, output
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", 3], "num_heads 4 does not divide by tp=3"),
        (["--dp", 8], "batch=4 is too small: dp=8 x microbatches=1 need 8 sequences"),
        (["--heads", 5], "hidden_size 32 does not divide by num_heads 5"),
        (["--data", "no/such/file"], "cannot be read: No such file"),
        (["--tokenizer", "words"], "use 'bpe' or 'bytes'"),
        (["--plot", "losses.doc"], "a picture's name ends in one of"),
        (["--plot", "no/such/losses.png"], "there is no folder"),
        (["--precision", "fp8"], "precision='fp8' is not one of fp32, fp16, bf16"),
        (["--zero", 4], "zero=4 is not a stage of ZeRO"),
        (["--recompute", "some"], "recompute='some' is not one of"),
        (["--compress", "zip"], "method='zip': gradients can be compressed by none, fp16"),
        (["--zero", 1, "--compress", "1-bit"], "zero=1 with compress='1-bit': take one"),
        (["--sequence-parallel", "--tp", 4, "--seq", 10], "10 does not divide by tp=4"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_is_trained(arguments, message, monkeypatch):
    monkeypatch.setattr(train, "train_on", None)
    monkeypatch.setattr(train, "launch", None)
    code, output = invoke(*arguments)
    assert code == 1
    assert output.startswith("error: ")
    assert message in output.replace("\n", " ")


def test_a_sample_cannot_send_commands_to_the_terminal():
    assert train.printable("a\x1b[2J\x07 b\r\nü") == "a\ufffd[2J\ufffd b\ufffd\nü"


def test_a_text_too_short_for_a_sequence_is_one_clear_line(tmp_path):
    (tmp_path / "text.txt").write_text("short")
    code, output = invoke("--data", tmp_path / "text.txt")
    assert code == 1
    assert "the text is too short" in output


def test_a_world_of_no_rank_is_refused():
    code, output = invoke("--tp", 0)
    assert code != 0
    assert "--tp" in output


def test_the_command_lines_defaults_are_those_of_the_demo():
    defaults = {n: p.default for n, p in inspect.signature(cli.train).parameters.items()}
    for field in dataclasses.fields(Settings):
        assert defaults[field.name] == field.default, field.name
