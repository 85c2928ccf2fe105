"""Gradient averaging, against plain sums of torch gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import minimegatron as mm
from minimegatron.data_parallel.gradients import (
    GradientBuckets,
    accumulate_gradients,
    finish_gradients,
    gradient_weight,
    overlap_gradients,
)

CONFIG = mm.GPTConfig(vocab_size=19, seq_length=6, hidden_size=16, num_layers=2, num_heads=4)


def batch(size, seed=0, real=None):
    """Tokens and targets (size, seq); sequence i keeps real[i] targets, all if real is None."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(19, (size, 6), generator=generator)
    targets = torch.randint(19, (size, 6), generator=generator)
    for i, n in enumerate(real or []):
        targets[i, n:] = -100
    return tokens, targets


def model_on(mesh, config=CONFIG):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    return mm.GPT(config, mesh)


def one_process_gradients(tokens, targets):
    """The gradients of the mean over all tokens, by the dense model in this process."""
    try:
        model = model_on(mm.single())
        logits = model(tokens)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}
    finally:
        torch.set_default_dtype(torch.float32)


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=name)


def parameters(*sizes, dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in sizes]


def test_gradients_are_views_into_flat_buffers_last_parameter_first():
    first, second = parameters(3, 5)
    axis = mm.single().dp
    buckets = GradientBuckets([first, second], axis)
    second.grad = torch.arange(5.0)
    buckets.finish(tokens=1)
    (buffer,) = buckets.buffers
    assert buffer.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert second.grad.data_ptr() == buffer.data_ptr()
    assert first.grad.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_buckets_keep_their_size_and_one_dtype():
    small = parameters(100, 100, 100, 1000, 100)  # 400, 400, 400, 4000 and 400 bytes
    double = parameters(10, dtype=torch.float64)
    buckets = GradientBuckets([*double, *small], mm.single().dp, bucket_bytes=1000)
    assert [b.numel() for b in buckets.buffers] == [100, 1000, 200, 100, 10]
    assert [b.dtype for b in buckets.buffers] == [torch.float32] * 4 + [torch.float64]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_the_mean_is_over_all_tokens_at_every_step(overlap, set_to_none):
    tokens, targets = batch(4, real=[1, 2, 5, 6])

    def run(mesh):
        model = model_on(mesh)
        part = slice(2 * mesh.dp.rank, 2 * mesh.dp.rank + 2)
        for _ in range(3):
            model.zero_grad(set_to_none=set_to_none)
            if overlap:
                with overlap_gradients(model, bucket_bytes=3000):
                    model.loss(tokens[part], targets[part]).backward()
            else:
                model.loss(tokens[part], targets[part]).backward()
            finish_gradients(model)
            assert model.tokens_since_finish == 0
        return model.full_gradients()

    wanted = one_process_gradients(tokens, targets)
    for found in mm.launch(run, dp=2):
        assert_equal(found, wanted)


def test_microbatches_of_unequal_token_counts_give_the_gradient_of_the_whole_batch():
    tokens, targets = batch(5, real=[6, 1, 3, 2, 5])

    def run(mesh):
        model = model_on(mesh)
        rows = [[0, 1], [2]] if mesh.dp.rank == 0 else [[3], [4]]
        loss = accumulate_gradients(model, [(tokens[r], targets[r]) for r in rows])
        finish_gradients(model)
        return model.full_gradients(), loss

    wanted = one_process_gradients(tokens, targets)
    for found, _ in mm.launch(run, dp=2):
        assert_equal(found, wanted)


def test_a_rank_without_any_real_target_adds_nothing():
    tokens, targets = batch(2, real=[0, 4])

    def run(mesh):
        model = model_on(mesh)
        row = slice(mesh.dp.rank, mesh.dp.rank + 1)
        accumulate_gradients(model, [(tokens[row], targets[row])])
        finish_gradients(model)
        return model.full_gradients()

    wanted = one_process_gradients(tokens, targets)
    for found in mm.launch(run, dp=2):
        assert_equal(found, wanted)


def test_weights_are_shares_of_the_tokens_and_equal_where_none_is_counted():
    def run(mesh):
        cpu = torch.device("cpu")
        counted = gradient_weight(3 if mesh.rank else 1, mesh.dp, cpu)
        return float(counted), float(gradient_weight(0, mesh.dp, cpu))

    assert mm.launch(run, dp=2) == [(0.25, 0.5), (0.75, 0.5)]


def test_reductions_start_in_backward_before_the_first_layers_gradients_exist():
    def run(mesh):
        model = model_on(mesh)
        sent = {}
        with mm.ledger() as log:
            for name in ("final_norm.weight", "layers.0.ln1.weight"):
                parameter = model.get_parameter(name)
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: sent.update({name: log.count("all_reduce", axis="dp")})
                )
            with overlap_gradients(model, bucket_bytes=4000):
                model.loss(*batch(1, seed=mesh.rank)).backward()
                inside = log.count("all_reduce", axis="dp", phase="backward")
            everything = log.count("all_reduce", axis="dp")
            finish_gradients(model)
            assert log.count("all_reduce", axis="dp") == everything  # nothing is averaged twice
        assert log.count("all_reduce", axis="dp", phase="backward") == everything
        return sent["final_norm.weight"], sent["layers.0.ln1.weight"], inside, everything

    for early, late, inside, everything in mm.launch(run, dp=2):
        assert early == 0  # the last layer comes first: no bucket is full yet
        assert 2 < late < everything  # the number of tokens and the last layer's buckets have left
        assert inside == everything  # tied embeddings come last, and even they leave in backward


def test_only_the_last_microbatch_sends():
    def run(mesh):
        model = model_on(mesh)
        sent = []
        parts = [batch(1, seed=i) for i in range(3)]
        with mm.ledger() as log:
            model.register_forward_pre_hook(lambda *_: sent.append(len(log)))
            accumulate_gradients(model, parts)
            total = len(log)
            finish_gradients(model)
            return sent, total, len(log)

    for sent, total, after in mm.launch(run, dp=2):
        assert sent == [0, 0, 0]
        assert total == after == 2  # the number of tokens, and one bucket


def test_dp_sends_every_parameter_once_even_tied_ones():
    def run(mesh):
        model = model_on(mesh)
        with mm.ledger() as log:
            accumulate_gradients(model, [batch(1)])
            finish_gradients(model)
        return log.bytes(axis="dp"), sum(p.numel() for p in model.parameters())

    for sent, elements in mm.launch(run, dp=2):
        assert sent == 8 * elements + 8  # float64, and the number of tokens


@pytest.mark.parametrize("overlap", [False, True])
def test_frozen_and_unused_parameters_do_not_hang(overlap):
    def run(mesh):
        model = model_on(mesh)
        model.extra = torch.nn.Linear(3, 3)  # never used
        model.layers["0"].mlp.up.weight.requires_grad_(False)
        parts = [batch(1, seed=mesh.rank)]
        if overlap:
            accumulate_gradients(model, parts)
        else:
            model.loss(*parts[0]).backward()
        finish_gradients(model)
        model.layers["0"].mlp.up.weight.requires_grad_(True)  # thawed: the buckets are made anew
        model.zero_grad()
        accumulate_gradients(model, parts)
        finish_gradients(model)
        names = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        return names, model.layers["0"].mlp.up.weight.grad

    (names, first), (_, second) = mm.launch(run, dp=2, timeout=10)
    assert sorted(names) == ["extra.bias", "extra.weight"]
    assert torch.equal(first, second)


def test_a_parameter_that_only_one_rank_used_counts_as_zero_on_the_other():
    def run(mesh):
        model = model_on(mesh)
        model.extra = torch.nn.Parameter(torch.ones(3))
        loss = model.loss(*batch(1))
        if mesh.dp.rank == 0:
            loss = loss + model.extra.sum()
        with overlap_gradients(model):
            loss.backward()
        finish_gradients(model)
        return model.extra.grad

    for gradient in mm.launch(run, dp=2, timeout=10):
        assert gradient.tolist() == [0.5, 0.5, 0.5]


def test_a_second_backward_inside_overlap_is_an_error():
    def run(mesh):
        model = model_on(mesh)
        with overlap_gradients(model):
            model.loss(*batch(1)).backward()
            model.loss(*batch(1)).backward()

    with pytest.raises(mm.RankError, match="wraps ONE backward"):
        mm.launch(run, dp=2)


def test_a_microbatch_after_overlap_is_an_error():
    def run(mesh):
        model = model_on(mesh)
        with overlap_gradients(model):
            model.loss(*batch(1)).backward()
        model.loss(*batch(1)).backward()
        finish_gradients(model)

    with pytest.raises(mm.RankError, match="it must wrap the last one"):
        mm.launch(run, dp=2)


def test_one_rank_sends_nothing_and_keeps_its_gradients():
    model = model_on(mm.single())
    torch.set_default_dtype(torch.float32)
    with mm.ledger() as log:
        accumulate_gradients(model, [batch(2)])
        before = model.full_gradients()
        finish_gradients(model)
    assert len(log) == 0
    assert_equal(model.full_gradients(), before)


def test_a_half_precision_parameter_may_have_its_gradient_in_float32():
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    half.grad_dtype = torch.float32
    buckets = GradientBuckets([half], mm.single().dp)
    (half * 1.0078125).sum().backward()
    buckets.finish(tokens=1)
    assert buckets.buffers[0].dtype == half.grad.dtype == torch.float32
    assert buckets.fits([half], buckets.axis)
    half.grad = None
    half.grad_dtype = torch.bfloat16
    assert not buckets.fits([half], buckets.axis)


def test_a_loss_scale_multiplies_gradients_and_leaves_the_loss():
    found = []
    for scale in (1.0, 1024.0):
        model = model_on(mm.single())
        torch.set_default_dtype(torch.float32)
        loss = accumulate_gradients(model, [batch(1), batch(2)], loss_scale=scale)
        found.append((loss, model.full_gradients()))
    (loss, plain), (same, scaled) = found
    assert torch.equal(loss, same)
    assert_equal(scaled, {name: 1024 * gradient for name, gradient in plain.items()})


def test_a_reducer_of_the_model_stands_in_for_the_all_reduce_of_every_bucket():
    tokens, targets = batch(2, real=[1, 5])

    def run(mesh):
        model = model_on(mesh)
        asked = []

        def reducer(buckets, index):
            asked.append(index)
            return mm.all_reduce(buckets.buffers[index], buckets.axis, inplace=True, async_op=True)

        model.gradient_reducer = reducer
        with overlap_gradients(model, bucket_bytes=4000):
            model.loss(*(t[mesh.dp.rank : mesh.dp.rank + 1] for t in (tokens, targets))).backward()
        finish_gradients(model)
        assert asked == list(range(len(model.gradient_buckets.groups)))
        return model.full_gradients()

    wanted = one_process_gradients(tokens, targets)
    for found in mm.launch(run, dp=2):
        assert_equal(found, wanted)
