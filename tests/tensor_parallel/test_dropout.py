"""The two random streams, and the masks drawn from them."""

from __future__ import annotations

import pytest
import torch

import minimegatron as mm


def draws(mesh, seed=0):
    streams = mm.DropoutStreams(mesh, seed)
    return (
        torch.rand(8, generator=streams.same).tolist(),
        torch.rand(8, generator=streams.different).tolist(),
    )


def test_same_is_equal_along_tp_only_and_different_is_equal_nowhere():
    ranks = mm.launch(draws, tp=2, dp=2)  # ranks 0 and 1 are the first replica's
    same, different = zip(*ranks, strict=True)
    assert same[0] == same[1] != same[2] == same[3]
    everything = {str(d) for d in different} | {str(s) for s in same}
    assert len(everything) == 6


def test_the_seed_alone_decides_what_the_streams_draw():
    mesh = mm.single()
    first = draws(mesh)
    torch.manual_seed(77)
    assert draws(mesh) == first != draws(mesh, seed=1)


def test_streams_leave_torchs_default_generator_alone():
    before = torch.get_rng_state()
    streams = mm.DropoutStreams(mm.single(), 0)
    mm.dropout(torch.ones(100), 0.5, streams.same)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_a_share_p_and_scales_the_rest(p):
    streams, record = mm.DropoutStreams(mm.single(), 0), []
    x = torch.full((100, 1000), 3.0, requires_grad=True)
    y = mm.dropout(x, p, streams.same, site="here", record=record)
    (site, kept), scale = record[0], 1 / (1 - p)
    assert site == "here" and kept.dtype == torch.bool
    torch.testing.assert_close(y, torch.where(kept, 3.0 * scale, 0.0))
    # five standard deviations of the mean of 100,000 draws
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / 1e5) ** 0.5
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(kept, scale, 0.0))


def test_nothing_is_drawn_outside_training_or_without_dropout():
    streams, x = mm.DropoutStreams(mm.single(), 0), torch.ones(4)
    before = streams.same.get_state()
    assert mm.dropout(x, 0.5, streams.same, training=False) is x
    assert mm.dropout(x, 0.0, streams.same) is x
    assert torch.equal(streams.same.get_state(), before)
