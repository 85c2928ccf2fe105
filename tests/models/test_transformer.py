"""One transformer layer: what it sends, and its dropout."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm


def config(**changes):
    base = {"vocab_size": 51, "seq_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 4}
    return mm.GPTConfig(**(base | changes))


@pytest.mark.parametrize("layer_norm", ["pre", "post"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_layer_costs_two_all_reduces_forward_and_two_backward(tp, layer_norm):
    def check(mesh):
        layer = mm.TransformerLayer(
            config(layer_norm=layer_norm), mesh.tp, mm.DropoutStreams(mesh, 0)
        )
        x = torch.randn(3, 12, 16, requires_grad=True)
        with mm.ledger() as log:
            layer(x).sum().backward()
        expected = 0 if tp == 1 else 2
        size = 3 * 12 * 16 * 4
        for phase in ("forward", "backward"):
            assert log.count("all_reduce", axis="tp", phase=phase) == expected
            assert log.bytes("all_reduce", axis="tp", phase=phase) == expected * size
        assert len(log) == 2 * expected

    mm.launch(check, tp=tp)


def record_step(mesh, config):
    """Masks, loss and whether torch's generator moved, of one forward and backward pass."""
    torch.manual_seed(1)
    model = mm.GPT(config, mesh)
    before = torch.get_rng_state()
    model.streams.record = [] if config.attention == "explicit" else None
    tokens = torch.arange(24).view(2, 12)
    loss = model.loss(tokens, tokens)
    loss.backward()
    moved = not torch.equal(before, torch.get_rng_state())
    return model.streams.record, loss.detach(), model.full_gradients(), moved


def check_masks(using=None):
    """Replicated sites agree on all tp ranks, split sites and replicas differ."""
    settings = config(dropout=0.3, attention="explicit")
    ranks = mm.launch(record_step, settings, tp=2, dp=2, using=using)
    masks = [dict(record) for record, *_ in ranks]
    sites = {"embedding"} | {
        f"layers.{i}.{site}"
        for i in range(2)
        for site in ("attention.weights", "attention.residual", "mlp.residual")
    }
    assert all(set(m) == sites and len(m) == len(r[0]) for m, r in zip(masks, ranks, strict=True))
    for site in sites:
        replicated = not site.endswith("weights")
        assert torch.equal(masks[0][site], masks[1][site]) == replicated
        assert torch.equal(masks[2][site], masks[3][site]) == replicated
        assert not torch.equal(masks[0][site], masks[2][site])
    assert masks[0]["layers.0.attention.weights"].shape == (2, 2, 12, 12)


def test_replicated_sites_draw_equal_masks_and_split_sites_different_ones():
    check_masks()


class OneSeedInside(mm.DropoutStreams):
    def __init__(self, mesh, seed):
        super().__init__(mesh, seed)
        self.different.manual_seed(seed + mesh.dp.rank)


class OwnSeedOutside(mm.DropoutStreams):
    def __init__(self, mesh, seed):
        super().__init__(mesh, seed)
        self.same.manual_seed(seed + mesh.rank)


@pytest.mark.parametrize("wrong", [OneSeedInside, OwnSeedOutside])
def test_bugs_11_and_12_a_stream_seeded_wrongly_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_masks(using={"DropoutStreams": wrong})


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_dropout_leaves_torchs_generator_alone_and_replicas_equal(attention):
    settings = config(dropout=0.3, attention=attention)
    ranks = mm.launch(record_step, settings, tp=2)
    assert not any(moved for *_, moved in ranks)
    assert torch.equal(ranks[0][1], ranks[1][1])
    for name, value in ranks[0][2].items():
        assert torch.equal(value, ranks[1][2][name]), name


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_dropout_does_something_in_training_and_nothing_in_evaluation(attention):
    settings = config(dropout=0.3, attention=attention)
    model, tokens = mm.GPT(settings), torch.arange(24).view(2, 12)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_the_fused_kernel_draws_other_masks_on_each_rank_and_call():
    def attend(mesh):
        streams = mm.DropoutStreams(mesh, 0)
        layer = mm.ParallelAttention(config(dropout=0.5), mesh.tp, streams)
        ones = torch.ones(1, 2, 8, 4)
        return [layer._fused(ones, ones, ones)[..., 0] for _ in range(2)]

    first, second = mm.launch(attend, tp=2)
    drawn = {str(value.tolist()) for value in (*first, *second)}
    assert len(drawn) == 4


def test_masks_of_the_fused_kernel_cannot_be_recorded():
    model = mm.GPT(config(dropout=0.3))
    model.streams.record = []
    with pytest.raises(ValueError, match="explicit"):
        model(torch.zeros(1, 2, dtype=torch.long))
