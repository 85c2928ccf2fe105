"""Parity: what it asks for, what it counts, and that planted bugs do not pass."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import minimegatron as mm
from minimegatron.models.gpt import GPT
from minimegatron.training import parity as module

CONFIG = mm.GPTConfig(vocab_size=38, seq_length=8, hidden_size=32, num_layers=2, num_heads=8)
LAYERS = CONFIG.num_layers


def check(**features):
    return mm.parity(CONFIG, **features)


@pytest.fixture(scope="module")
def reports():
    """One report for each split, made once."""
    made = {}

    def report(**features):
        key = tuple(sorted(features.items(), key=str))
        if key not in made:
            made[key] = check(**features)
        return made[key]

    return report


# What every report holds


def test_everything_promised_is_compared_and_equal_in_float64(reports):
    report = reports(tp=2, dp=2)
    assert report.ok
    assert set(report.errors) == {"loss", "logits", "gradients", "grad_norm", "parameters"}
    assert set(report.worst) == set(report.errors)
    assert all(0 <= error <= 1e-10 for error in report.errors.values())
    assert report.worst["gradients"] in GPT(CONFIG).full_state_dict()
    assert len(report.ledger) == 4


@pytest.mark.parametrize("split", [{}, {"tp": 2}, {"dp": 2, "microbatches": 2}])
def test_float32_is_equal_within_its_bands(split):
    report = check(dtype=torch.float32, **split)
    assert report.ok, report
    assert report.errors["gradients"] > 1e-9  # and it was float32


def test_the_notebook_shows_the_same_text_on_every_machine(reports):
    assert str(reports(tp=2)).splitlines()[:2] == [
        "parity tp=2 dp=1, float64, 3 steps: equal",
        "  loss           equal (<= 1e-10)",
    ]


def test_targets_are_unequally_many_on_every_rank_and_microbatch():
    for size in (1, 2, 3, 8):
        tokens, targets = module._batch(CONFIG, size, seed=0, tp=2)
        real = (targets != -100).sum(1).tolist()
        assert all(0 < n < CONFIG.seq_length for n in real)
        assert real == sorted(real) and (size == 1 or real[0] < real[-1])
        assert int(tokens.max()) < CONFIG.vocab_size


class LastRowMissing(mm.VocabParallelEmbedding):
    """Bug 7: the last token of each shard is taken for another rank's."""

    def forward(self, tokens):
        lost = (tokens - self.first) == len(self.weight) - 1
        return super().forward(tokens) * ~lost.unsqueeze(-1)


@pytest.mark.parametrize("tp", [2, 4])
def test_bug_7_cannot_hide_in_a_vocabulary_larger_than_the_batch(tp):
    large = dataclasses.replace(CONFIG, vocab_size=1003)  # 32 tokens a step
    wrong = {"VocabParallelEmbedding": LastRowMissing}
    assert mm.parity(large, tp=tp, steps=1).ok
    assert not mm.parity(large, tp=tp, steps=1, using=wrong).ok


def test_noise_reaches_every_parameter():
    plain = GPT(CONFIG).full_state_dict()
    noisy = module._noisy_state(CONFIG, 0, torch.float64)
    for name in plain:
        if name.endswith("bias") or "norm" in name or ".ln" in name:
            assert noisy[name].unique().numel() > 1, name


def test_asking_disturbs_no_generator():
    before = torch.random.get_rng_state()
    check()
    assert torch.equal(torch.random.get_rng_state(), before)


# The ledger (L layers, m micro-batches)


def test_tp_sends_what_the_paper_says_in_every_step(reports):
    for log in reports(tp=2).ledger:
        assert log.count("all_reduce", axis="tp", phase="forward") == 2 * LAYERS + 1 + 3
        assert log.count("all_reduce", axis="tp", phase="backward") == 2 * LAYERS + 1
        assert log.count(phase="optimizer") == 1  # the gradient norm
        assert len(log) == 4 * LAYERS + 5 + 1


def test_microbatches_multiply_tp_messages_and_leave_dp_messages_alone(reports):
    one, three = reports(tp=2, dp=2), reports(tp=2, dp=2, microbatches=3)
    for a, b in zip(one.ledger, three.ledger, strict=True):
        for phase in ("forward", "backward"):
            count = 3 * a.count(axis="tp", phase=phase)
            assert b.count(axis="tp", phase=phase) == count > 0
        assert a.count(axis="dp") == b.count(axis="dp") == 2
        assert a.bytes(axis="dp") == b.bytes(axis="dp")


def test_dp_averages_every_local_parameter_once(reports):
    elements = sum(t.numel() for t in GPT(CONFIG).full_state_dict().values())
    for log in reports(dp=2).ledger:
        assert log.bytes(axis="dp", phase="backward") == 8 * elements + 8
        assert log.count(axis="tp") == 0


def test_tp_halves_what_dp_has_to_average(reports):
    whole, half = reports(dp=2).ledger[0], reports(tp=2, dp=2).ledger[0]
    assert 0.5 < half.bytes(axis="dp") / whole.bytes(axis="dp") < 0.6


def test_one_process_sends_nothing(reports):
    assert len(reports().ledger[0]) == 0


# Features do something


def local_sizes(mesh, config):
    return {name: tuple(p.shape) for name, p in GPT(config, mesh).named_parameters()}


def test_tp_shrinks_parameters_and_pads_the_vocabulary():
    config = dataclasses.replace(CONFIG, vocab_size=37)
    (one,) = mm.launch(local_sizes, config)
    for four in mm.launch(local_sizes, config, tp=4):
        assert four["layers.0.mlp.up.weight"] == (32, 32)
        assert one["layers.0.mlp.up.weight"] == (128, 32)
        assert four["embedding.word.weight"] == (10, 32)  # 40 rows for 37 words
    assert check(vocab_size=37, tp=4).ok


def test_features_change_what_is_computed(reports, monkeypatch):
    seen = []

    def remember(wanted_of=module.oracle.train):
        def train(*args, **kwargs):
            steps = wanted_of(*args, **kwargs)
            seen.append(float(steps[0].loss))
            return steps

        return train

    monkeypatch.setattr(module.oracle, "train", remember())
    variants = [
        {},
        {"layer_norm": "post"},
        {"tie_embeddings": False},
        {"dropout": 0.1, "attention": "explicit"},
        {"batch": 3},
        {"seed": 1},
    ]
    for features in variants:
        report = check(steps=1, **features)
        assert report.ok, (features, report)
        assert ("masks" in report.errors) == ("dropout" in features)
    assert len(set(seen)) == len(variants)


# Bugs put in on purpose (the numbers are those of the bug museum)


def test_bug_3_and_4_wrong_conjugates_are_caught():
    assert not check(tp=2, using={"f": lambda x, axis: x}).ok

    def g_that_reduces_again(x, axis):
        return mm.f(mm.g(x, axis), axis)

    report = check(tp=2, using={"g": g_that_reduces_again})
    assert report.errors["loss"] > 0 and not report.ok
    assert report.errors["gradients"] > 0.1


def test_bug_13_replicated_parameters_counted_on_every_rank_are_caught():
    def gradient_norm(model):
        squares = sum(p.grad.square().sum() for p in model.parameters())
        return mm.all_reduce(squares, model.mesh.tp).sqrt()

    using = {"gradient_norm": gradient_norm}
    report = check(tp=2, using=using)
    assert not report.ok
    wrong = [kind for kind, error in report.errors.items() if error > 1e-10]
    assert wrong == ["grad_norm"]
    assert check(dp=2, using=using).ok  # nothing is replicated over tp there


@pytest.mark.parametrize(("dp", "microbatches"), [(1, 2), (2, 2)])
def test_bug_15_a_mean_of_microbatch_means_is_caught(dp, microbatches):
    def accumulate_gradients(model, parts):
        total = 0.0
        for tokens, targets in parts:
            loss = model.loss(tokens, targets) / len(parts)
            loss.backward()
            total = total + loss.detach()
        return total

    using = {"accumulate_gradients": accumulate_gradients}
    report = check(dp=dp, microbatches=microbatches, using=using)
    assert report.errors["loss"] > 1e-6
    assert report.errors["gradients"] > 1e-3
    assert check(dp=dp, microbatches=1, using=using).ok


@pytest.mark.parametrize("wrong", ["sum", "averaged twice", "mean of ranks", "forgotten"])
def test_bug_22_gradients_not_averaged_over_tokens_are_caught(wrong):
    def finish_gradients(model):
        axis = model.mesh.dp
        scale = {"sum": 1.0, "averaged twice": 1 / axis.size**2, "mean of ranks": 1 / axis.size}
        for parameter in model.parameters():
            if wrong in scale:
                parameter.grad = mm.all_reduce(parameter.grad, axis) * scale[wrong]
        model.tokens_since_finish = 0

    report = check(dp=2, using={"finish_gradients": finish_gradients})
    assert not report.ok
    assert report.errors["loss"] > 0
    assert report.errors["gradients"] > 1e-3
    assert report.errors["grad_norm"] > 1e-3


def test_a_learners_own_right_finish_gradients_passes():
    def finish_gradients(model):
        tokens = torch.as_tensor(model.tokens_since_finish, dtype=torch.float64)
        share = tokens / mm.all_reduce(tokens, model.mesh.dp)
        for parameter in model.parameters():
            parameter.grad = mm.all_reduce(parameter.grad * share, model.mesh.dp)
        model.tokens_since_finish = 0

    report = check(tp=2, dp=2, using={"finish_gradients": finish_gradients})
    assert report.ok, report
    parameters = 1 + 1 + 12 * LAYERS + 2  # embeddings, layers, final norm: an all-reduce each
    assert report.ledger[0].count(axis="dp") == parameters + 1


def test_bugs_11_and_12_wrong_dropout_streams_are_caught():
    class SameEverywhere(mm.DropoutStreams):
        def __init__(self, mesh, seed):
            super().__init__(mesh, seed)
            self.different = torch.Generator().manual_seed(seed)

    class DifferentEverywhere(mm.DropoutStreams):
        def __init__(self, mesh, seed):
            super().__init__(mesh, seed)
            self.same = self.different

    features = {"tp": 2, "dropout": 0.2, "attention": "explicit"}
    assert check(**features).ok
    for streams, site in (
        (SameEverywhere, "layers.0.attention.weights"),
        (DifferentEverywhere, "embedding"),
    ):
        report = check(**features, using={"DropoutStreams": streams})
        assert report.errors["masks"] == math.inf
        assert report.worst["masks"] == site
        assert not report.ok


# Bad input


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"tp": 3}, "num_heads 8 does not divide by tp=3"),
        ({"dp": 2, "batch": 1}, "batch=1 is too small: dp=2 x microbatches=1 need 2"),
        ({"microbatches": 3, "batch": 2}, "batch=2 is too small"),
        ({"tp": 0}, "tp=0"),
        ({"steps": 0}, "steps=0"),
        ({"dtype": torch.int64}, "int64"),
        ({"pp": 3}, "num_layers 2 does not divide by pp=3 x chunks=1 stages"),
        ({"schedule": "zigzag"}, "'zigzag' is not one of gpipe"),
        ({"zero": 4}, "zero=4 is not a stage of ZeRO: 1, 2 or 3"),
        ({"zero": 2, "pp": 2, "dp": 2}, "zero=2 with pp=2: a pipeline lives on many micro-batches"),
        ({"zero": 3, "pp": 2}, "gather its parameters twice, where zero=1 sends once a step"),
        ({"pp": 2, "chunks": 2}, "num_layers 2 does not divide by pp=2 x chunks=2 stages"),
        ({"chunks": 2}, "schedule='1f1b' with chunks=2: only 'interleaved' has more than one"),
        ({"recompute": "some"}, "recompute='some'"),
        ({"layer_norm": "middle"}, "layer_norm='middle'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_rank_starts(features, message, monkeypatch):
    monkeypatch.setattr(module, "launch", None)
    with pytest.raises(ValueError, match=message):
        check(**features)


def test_an_unknown_feature_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match="no feature 'microbatch'; it knows .*microbatches"):
        check(microbatch=2)


def test_a_ranks_failure_comes_back_as_its_own():
    def g(x, axis):
        raise RuntimeError("a bug of mine")

    with pytest.raises(mm.RankError, match="a bug of mine"):
        check(tp=2, using={"g": g})


def test_a_layer_that_forgets_a_dropout_is_reported_by_its_site():
    class NoResidualDropout(mm.TransformerLayer):
        def forward(self, x):
            x = x + self.attention(self.ln1(x))
            return x + self.mlp(self.ln2(x))

    features = {"dropout": 0.1, "attention": "explicit", "steps": 1}
    report = mm.parity(CONFIG, tp=2, using={"TransformerLayer": NoResidualDropout}, **features)
    assert not report.ok and "residual (never drawn)" in report.worst["masks"]
    assert report.errors["gradients"] <= 1e-10, "the rest is compared with what was dropped"
