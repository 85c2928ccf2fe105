"""Recompute: the same gradients from less memory, the same masks, and messages sent twice."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import minimegatron as mm


def streams():
    return mm.DropoutStreams(mm.single(), 0)


def dropped(x, own):
    """Both streams at work: what a layer does."""
    x = mm.dropout(x, 0.3, own.same, site="a", record=own.record).exp()
    return mm.dropout(x, 0.3, own.different, site="b", record=own.record)


def test_gradients_are_those_of_the_function_with_inputs_that_want_none_among_them():
    torch.manual_seed(0)
    layer, x, scale = nn.Linear(4, 4), torch.randn(3, 4), torch.randn(3, 4)

    def function(a, b):
        return layer(a).tanh() * b

    results = []
    for again in (False, True):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        args = leaf * 2, scale
        y = mm.recompute(function, streams(), *args) if again else function(*args)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    assert scale.grad is None


def test_only_the_inputs_are_saved():
    def bytes_saved(call):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = call()
        del y
        return sum(storage.nbytes() for storage in sizes.values())

    x = torch.randn(10, 10, requires_grad=True)

    def function(x):
        return x.exp().sin().tanh()

    assert bytes_saved(lambda: function(x)) == 2 * 400  # what exp and tanh gave
    assert bytes_saved(lambda: mm.recompute(function, streams(), x)) == 400


def test_both_streams_draw_the_same_masks_again_and_go_on_as_if_nothing_had_been():
    results = []
    for again in (False, True):
        own, x = streams(), torch.ones(50, requires_grad=True)
        own.record = []
        first = mm.recompute(partial(dropped, own=own), own, x) if again else dropped(x, own)
        between = own.states()
        later = dropped(x, own)  # forward goes on before backward comes back
        (first * later).sum().backward()
        results.append((first.detach(), later.detach(), x.grad, *between, *own.states()))
        assert len(own.record) == (6 if again else 4)
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    assert [site for site, _ in own.record] == ["a", "b", "a", "b", "a again", "b again"]
    for i in (0, 1):
        assert torch.equal(own.record[i][1], own.record[4 + i][1])


def test_parameters_get_their_gradient_behind_a_frozen_input_and_frozen_ones_none():
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    mm.recompute(layer, streams(), x).sum().backward()
    assert layer.weight.grad is not None and x.grad is None
    layer.requires_grad_(False)
    after = torch.ones(4, requires_grad=True)
    (mm.recompute(layer, streams(), x) * after).sum().backward()
    assert after.grad is not None
    with torch.no_grad():
        assert not mm.recompute(layer, streams(), x).requires_grad


def test_the_second_run_has_the_first_ones_autocast():
    layer, x = nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    seen = []

    def function(x):
        seen.append(layer(x).dtype)
        return layer(x)

    with torch.autocast("cpu", torch.bfloat16):
        y = mm.recompute(function, streams(), x)
    y.float().sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_a_gradient_that_would_be_lost_is_an_error():
    layer, x = nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    y = mm.recompute(layer, streams(), x).sum()
    with pytest.raises(RuntimeError, match=r"recompute needs loss.backward\(\)"):
        torch.autograd.grad(y, x)  # layer.weight.grad would be filled on the way


def test_a_layers_two_all_reduces_are_sent_again_and_torchs_checkpoint_skips_the_last():
    config = mm.GPTConfig(51, 12, 16, num_layers=1, num_heads=4)

    def torchs(layer, x):
        contexts = lambda: (contextlib.nullcontext(), mm.phase("recompute"))  # noqa: E731
        return checkpoint(layer, x, use_reentrant=False, context_fn=contexts)

    def check(mesh):
        own = mm.DropoutStreams(mesh, 0)
        layer = mm.TransformerLayer(config, mesh.tp, own)

        def counts(call):
            x = torch.randn(3, 12, 16, requires_grad=True)
            with mm.ledger() as log:
                call(x).sum().backward()
            return [log.count("all_reduce", "tp", p) for p in ("forward", "recompute", "backward")]

        assert counts(layer) == [2, 0, 2]
        assert counts(lambda x: mm.recompute(layer, own, x)) == [2, 2, 2]
        # It stops at the last tensor that backward needs: the input of the MLP's last product.
        assert counts(lambda x: torchs(layer, x)) == [2, 1, 2]
        with set_checkpoint_early_stop(False):
            assert counts(lambda x: torchs(layer, x)) == [2, 2, 2]

    mm.launch(check, tp=2)
