"""A GPT that recomputes: equal to one process, with the messages and masks of a second forward."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import minimegatron as mm

CONFIG = mm.GPTConfig(vocab_size=38, seq_length=8, hidden_size=32, num_layers=2, num_heads=8)
DROPS = {"dropout": 0.2, "attention": "explicit"}


@pytest.mark.parametrize("recompute", ["full", "selective"])
@pytest.mark.parametrize(
    "features",
    [
        {},
        {"tp": 2, "layer_norm": "post"},
        {"tp": 2, "dp": 2, "microbatches": 2, **DROPS},
        {"tp": 4, "sequence_parallel": True, **DROPS},
        {"dp": 2, "tie_embeddings": False},
    ],
    ids=str,
)
def test_it_is_equal_to_one_process(recompute, features):
    report = mm.parity(CONFIG, recompute=recompute, **features)
    assert report.ok, report
    assert ("masks" in report.errors) == ("dropout" in features)


# What is sent


def test_full_sends_each_layers_forward_again_and_selective_nothing():
    for sequence_parallel in (False, True):
        features = {"tp": 2, "sequence_parallel": sequence_parallel, "steps": 1}
        plain = mm.parity(CONFIG, **features).ledger[0]
        selective = mm.parity(CONFIG, recompute="selective", **features).ledger[0]
        full = mm.parity(CONFIG, recompute="full", **features).ledger[0]
        ops = ("all_gather", "reduce_scatter") if sequence_parallel else ("all_reduce",)
        for phase in ("forward", "backward", "optimizer"):
            for log in (selective, full):
                assert log.count(phase=phase) == plain.count(phase=phase)
                assert log.bytes(phase=phase) == plain.bytes(phase=phase)
        assert selective.count(phase="recompute") == 0
        assert {r.op for r in full.select(phase="recompute")} == set(ops)
        for op in ops:
            assert full.count(op, "tp", "recompute") == 2 * CONFIG.num_layers


def test_buckets_still_travel_under_the_backward():
    def ready_in_order(mesh):
        model = mm.GPT(dataclasses.replace(CONFIG, recompute="full"), mesh)
        tokens = torch.arange(16).view(2, 8)
        seen = []
        for i, layer in model.layers.items():
            layer.register_full_backward_pre_hook(lambda *args, i=i: seen.append(i))
        with mm.overlap_gradients(model, bucket_bytes=4096), mm.ledger() as log:
            model.loss(tokens, tokens).backward()
            early = log.count("all_reduce", "dp")
        mm.finish_gradients(model)
        return early

    assert min(mm.launch(ready_in_order, dp=2)) > 5


# Masks and streams


def recorded(mesh, config):
    model = mm.GPT(config, mesh)
    model.streams.record = []
    tokens = torch.arange(16).view(2, 8)
    for _ in range(2):
        model.loss(tokens, tokens).backward()
    return model.streams.record, torch.cat(model.streams.states())


@pytest.mark.parametrize("recompute", ["full", "selective"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_recompute_draws_the_recorded_masks_again_and_leaves_the_streams_alone(
    recompute, sequence_parallel
):
    config = dataclasses.replace(CONFIG, sequence_parallel=sequence_parallel, **DROPS)
    plain = mm.launch(recorded, config, tp=2)
    again = mm.launch(recorded, dataclasses.replace(config, recompute=recompute), tp=2)
    for (masks, state), (both, state_again) in zip(plain, again, strict=True):
        assert torch.equal(state, state_again)
        sites = {}
        for site, mask in both:
            sites.setdefault(site, []).append(mask)
        wanted = {}
        for site, mask in masks:
            wanted.setdefault(site, []).append(mask)
            drawn_twice = site.endswith("weights") if recompute == "selective" else "." in site
            if drawn_twice:
                wanted.setdefault(f"{site} again", []).append(mask)
        assert sites.keys() == wanted.keys()
        for site in wanted:
            assert all(map(torch.equal, sites[site], wanted[site])), site


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_the_fused_kernels_dropout_is_the_same_in_the_second_run(recompute):
    def gradients(mesh, config):
        model = mm.GPT(config, mesh)
        tokens = torch.arange(16).view(2, 8)
        model.loss(tokens, tokens).backward()
        return model.full_gradients()

    config = dataclasses.replace(CONFIG, dropout=0.3)
    plain = mm.launch(gradients, config, tp=2)
    again = mm.launch(gradients, dataclasses.replace(config, recompute=recompute), tp=2)
    torch.testing.assert_close(again, plain)


# Bugs put in on purpose


def without(restored):
    """A recompute that puts back only the streams named."""

    class Forgetful:
        def __init__(self, streams):
            self.streams = streams

        def states(self):
            return self.streams.states()

        def restore(self, states):
            for name, state in zip(("same", "different"), states, strict=True):
                if name in restored:
                    getattr(self.streams, name).set_state(state)

    return lambda function, streams, *inputs: mm.recompute(function, Forgetful(streams), *inputs)


@pytest.mark.parametrize("forgotten", ["same", "different"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_a_stream_that_is_not_put_back_is_caught(forgotten, recompute):
    (kept,) = {"same", "different"} - {forgotten}
    report = mm.parity(
        CONFIG, tp=2, steps=1, recompute=recompute, using={"recompute": without({kept})}, **DROPS
    )
    if (recompute, forgotten) == ("selective", "same"):  # attention draws from the other one
        assert report.ok
        return
    assert report.errors["masks"] == math.inf and report.worst["masks"].endswith(" again")
    assert report.errors["loss"] <= 1e-10  # the forward pass was right
    assert report.errors["gradients"] > 1e-3
    assert mm.parity(
        CONFIG, tp=2, steps=1, recompute=recompute, using={"recompute": without({})}
    ).ok  # hides without dropout


def test_a_recompute_that_does_not_is_reported_where_masks_are_compared():
    ignored = {"recompute": lambda function, streams, *inputs: function(*inputs)}
    report = mm.parity(CONFIG, recompute="full", steps=1, using=ignored, **DROPS)
    assert report.errors["masks"] == math.inf
    assert report.errors["gradients"] <= 1e-10
