"""Compressed gradients, against plain loops over the ranks' gradients and torch's own PowerSGD."""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as torchs

import minimegatron as mm
from minimegatron.data_parallel.compression import Compression, cast, largest, one_bit, powersgd
from minimegatron.data_parallel.gradients import GradientBuckets

SHAPES = [(6, 5), (7,), (4, 9), (3, 1)]  # 76 numbers: not a multiple of 8
SIZES = [math.prod(shape) for shape in SHAPES]
LOSSY = {
    "fp16": lambda: partial(cast, torch.float16),
    "bf16": lambda: partial(cast, torch.bfloat16),
    "top-k": lambda: partial(largest, 0.2),
    "1-bit": lambda: one_bit,
    "powersgd": lambda: partial(powersgd, 2, {}),
}


def gradient(rank, step):
    """A rank's gradients of a step, end to end, the first parameter first."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(sum(SIZES), generator=generator, dtype=torch.float64)


def reduce_steps(mesh, method, steps=3, feedback=True):
    """Each step's (reduced, residual, ledger), in the order of SHAPES; all in one bucket."""
    parameters = [torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in SHAPES]
    buckets = GradientBuckets(parameters, mesh.dp)
    compress = Compression(LOSSY[method](), feedback)
    found = []
    for step in range(steps):
        parts = gradient(mesh.dp.rank, step).split(SIZES)
        for p, part in zip(parameters, parts, strict=True):
            buckets.views[p].copy_(part.view(p.shape))
        with mm.ledger() as log:
            compress(buckets, 0).wait()
        reduced = torch.cat([buckets.views[p].flatten() for p in parameters])
        residual = [compress.residual.get(p, torch.zeros_like(p)) for p in parameters]
        found.append((reduced, torch.cat([r.detach().flatten() for r in residual]), log))
    return found


def by_parameter(m):
    return np.split(m, np.cumsum(SIZES)[:-1])


def what_top_k_sends(m):
    sent = np.zeros_like(m)
    for part, out in zip(by_parameter(m), by_parameter(sent), strict=True):
        order = sorted(range(len(part)), key=lambda i: -abs(part[i]))
        for place in order[: max(1, round(0.2 * len(part)))]:
            out[place] = part[place]
    return sent


def what_1_bit_sends(m):
    sent = []
    for part, shape in zip(by_parameter(m), SHAPES, strict=True):
        for row in part.reshape(shape if len(shape) > 1 else (1, -1)):
            sent += [np.abs(row).mean() * (-1 if value < 0 else 1) for value in row]
    return np.array(sent)


SENT = {
    "fp16": lambda m: m.astype(np.float16),
    "bf16": lambda m: torch.from_numpy(m).bfloat16().double().numpy(),
    "top-k": what_top_k_sends,
    "1-bit": what_1_bit_sends,
}


@pytest.mark.parametrize("method", SENT)
@pytest.mark.parametrize("feedback", [True, False])
def test_every_step_sends_what_the_method_says_of_gradient_plus_residual(method, feedback):
    ranks = mm.launch(reduce_steps, method, 3, feedback, dp=2)
    residual = np.zeros((2, sum(SIZES)))
    for step in range(3):
        m = np.stack([gradient(rank, step).numpy() for rank in (0, 1)]) + residual * feedback
        sent = np.stack([SENT[method](row) for row in m])
        residual = m - sent
        # The sum of two halves is made in half precision too.
        half = {"fp16": 2**-10, "bf16": 2**-7}.get(method, 1e-14)
        for rank, steps in enumerate(ranks):
            reduced, kept, _ = steps[step]
            np.testing.assert_allclose(reduced, sent.sum(0), rtol=half, atol=half * 1e-3)
            np.testing.assert_allclose(kept, residual[rank] * feedback, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["top-k", "1-bit", "powersgd"])
@pytest.mark.parametrize("dp", [2, 3])
def test_nothing_is_lost_sent_and_residuals_are_all_that_came_in(method, dp):
    ranks = mm.launch(reduce_steps, method, dp=dp)
    before = torch.zeros(sum(SIZES), dtype=torch.float64)
    for step in range(3):
        came = before + sum(gradient(rank, step) for rank in range(dp))
        before = sum(steps[step][1] for steps in ranks)
        torch.testing.assert_close(ranks[0][step][0] + before, came, rtol=1e-10, atol=1e-12)
        assert before.abs().max() > 0.1  # it is lossy


@pytest.mark.parametrize("method", ["top-k", "fp16", "bf16"])
def test_where_values_are_kept_or_cut_sent_plus_residual_is_the_gradient_bit_for_bit(method):
    def run(mesh):
        [(sent, residual, _)] = reduce_steps(mesh, method, steps=1)
        return torch.equal(sent + residual, gradient(0, 0))

    def alone(mesh):  # on one rank of an axis of size 1, the sum is what it sent itself
        return run(mesh)

    assert all(mm.launch(alone, dp=1))


@pytest.mark.parametrize("method", LOSSY)
def test_every_rank_ends_with_the_same_bits(method):
    for steps in zip(*mm.launch(reduce_steps, method, dp=4), strict=True):
        assert all(torch.equal(reduced, steps[0][0]) for reduced, _, _ in steps)


def test_the_bytes_on_the_wire_are_those_of_the_messages():
    n, kept = sum(SIZES), sum(max(1, round(0.2 * size)) for size in SIZES)
    columns = {(6, 5): 2, (4, 9): 2, (3, 1): 1}
    ps = sum(shape[0] * r for shape, r in columns.items()) + 7  # and the vector
    qs = sum(shape[1] * r for shape, r in columns.items())
    wanted = {  # (op, bytes) of the logical tensors on two ranks
        "fp16": [("all_reduce", 2 * n)],
        "bf16": [("all_reduce", 2 * n)],
        "top-k": [("all_gather", 2 * 8 * kept), ("all_gather", 2 * 4 * kept)],
        "1-bit": [("all_gather", 2 * -(-n // 8)), ("all_gather", 2 * 8 * (6 + 1 + 4 + 3))],
        "powersgd": [("all_reduce", 8 * ps), ("all_reduce", 8 * qs)],
    }
    for method, messages in wanted.items():
        log = mm.launch(reduce_steps, method, 1, dp=2)[0][0][2]
        assert [(r.op, r.bytes) for r in log.records] == messages, method


# PowerSGD ----------------------------------------------------------------------------------------


class Bucket:
    """As much of torch's GradBucket as its hook asks for."""

    def __init__(self, flat, shapes):
        self.flat, self.shapes = flat, shapes

    def buffer(self):
        return self.flat

    def index(self):
        return 0

    def is_last(self):
        return True

    def gradients(self):
        parts = self.flat.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class SeedZero(random.Random):
    def randint(self, *args):
        return 0


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_powersgd_is_torchs_hook_step_by_step(rank):
    shapes = [(12, 10), (7,)]  # one matrix: torch and ours draw the same first Q for it
    size = 127

    def numbers(mesh, step):
        generator = torch.Generator().manual_seed(100 * step + mesh.rank)
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def run(mesh):
        torch.set_default_dtype(torch.float64)
        state = torchs.PowerSGDState(
            mesh.dp.group, rank, start_powerSGD_iter=2, min_compression_rate=1
        )
        state.iter, state.rng = 2, SeedZero()
        parameters = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
        buckets = GradientBuckets(parameters[::-1], mesh.dp)  # which turns them round
        ours = Compression(partial(powersgd, rank, {}), feedback=True)
        errors = []
        for step in range(6):
            theirs = numbers(mesh, step)
            torchs.powerSGD_hook(state, Bucket(theirs, shapes)).wait()
            buckets.buffers[0].copy_(numbers(mesh, step) / mesh.dp.size)
            ours(buckets, 0).wait()
            errors.append(float((buckets.buffers[0] - theirs).abs().max() / theirs.abs().max()))
        return max(errors)

    assert max(mm.launch(run, dp=2)) < 1e-10


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (4, 4)])
def test_powersgd_at_full_rank_is_exact_even_where_the_gradient_has_a_lower_rank(shape):
    def run(mesh):
        torch.set_default_dtype(torch.float64)
        p = torch.nn.Parameter(torch.zeros(shape))
        buckets = GradientBuckets([p], mesh.dp)
        ours = Compression(partial(powersgd, 9, {}), feedback=True)
        worst = 0.0
        for step in range(4):
            torch.manual_seed(step)
            wanted = torch.randn(shape) * (step != 1)  # nothing at all in one step ...
            if step == 2:
                wanted[2:] = 0  # ... and few rows in another
            buckets.views[p].copy_(wanted / mesh.dp.size)
            ours(buckets, 0).wait()
            worst = max(worst, float((buckets.views[p] - wanted).abs().max()))
        return worst

    assert max(mm.launch(run, dp=2)) < 1e-12


# In a model --------------------------------------------------------------------------------------

CONFIG = mm.GPTConfig(vocab_size=19, seq_length=6, hidden_size=16, num_layers=2, num_heads=4)


def batch(mesh, step=0, size=2):
    generator = torch.Generator().manual_seed(step)
    whole = torch.randint(19, (2, size * mesh.dp.size, 6), generator=generator)
    tokens, targets = (t.chunk(mesh.dp.size)[mesh.dp.rank] for t in whole)
    return tokens, targets


def model_on(mesh, **features):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    return mm.GPT(mm.GPTConfig(**(vars(CONFIG) | features)), mesh)


def step_gradients(mesh, method, how, options=None, steps=1, **features):
    """The gradients after some steps, one for each parameter, and the ledger of the last step."""
    model = model_on(mesh, **features)
    mm.compress_gradients(model, method, **(options or {}))
    for step in range(steps):
        model.zero_grad()
        tokens, targets = batch(mesh, step)
        with mm.ledger() as log:
            if how == "overlap":
                with mm.overlap_gradients(model, bucket_bytes=4000):
                    model.loss(tokens, targets).backward()
            elif how == "microbatches":
                mm.accumulate_gradients(model, [(tokens[i], targets[i]) for i in ([0], [1])])
            else:
                model.loss(tokens, targets).backward()
            mm.finish_gradients(model)
    whole = {n: p.grad for n, p in model.named_parameters() if not model.is_sharded(n)}
    return model.full_gradients(), whole, log


EVERYTHING = {"top-k": {"k": 1.0}, "powersgd": {"rank": 64}}


@pytest.mark.parametrize("method", EVERYTHING)
@pytest.mark.parametrize("how", ["plain", "overlap", "microbatches"])
@pytest.mark.parametrize("split", [{"dp": 2}, {"tp": 2, "dp": 2}])
def test_a_method_that_sends_everything_gives_the_gradients_of_none(method, how, split):
    wanted = mm.launch(step_gradients, "none", "plain", **split)[0][0]
    for found, _, log in mm.launch(step_gradients, method, how, EVERYTHING[method], **split):
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=name)
        messages = log.count(axis="dp", phase="backward") - 1  # less the number of tokens
        assert messages > 2 if how == "overlap" else messages == 2


@pytest.mark.parametrize("method", LOSSY)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_all_copies_of_a_parameter_get_the_same_bits_along_dp_and_along_tp(
    method, sequence_parallel
):
    def run(mesh):
        return step_gradients(mesh, method, "overlap", steps=3, sequence_parallel=sequence_parallel)

    ranks = mm.launch(run, tp=2, dp=2)
    for gradients, whole, _ in ranks[1:]:
        for name, gradient in ranks[0][0].items():
            assert torch.equal(gradients[name], gradient), name
        for name, gradient in ranks[0][1].items():
            assert torch.equal(whole[name], gradient), name


def test_sequence_parallel_gradients_are_whole_when_everything_is_sent():
    def run(mesh, method, sequence_parallel):
        features = {"sequence_parallel": sequence_parallel}
        return step_gradients(mesh, method, "plain", EVERYTHING.get(method), 1, **features)[0]

    wanted = mm.launch(run, "none", False, tp=2, dp=2)[0]
    for found in mm.launch(run, "top-k", True, tp=2, dp=2):
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=name)


@pytest.mark.parametrize("method", LOSSY)
def test_a_bf16_model_is_compressed_in_the_dtype_of_its_gradients(method):
    def run(mesh):
        torch.manual_seed(0)
        model = mm.half_precision(mm.GPT(CONFIG, mesh), torch.bfloat16)
        mm.compress_gradients(model, method)
        mm.accumulate_gradients(model, [batch(mesh)])
        mm.finish_gradients(model)
        residuals = model.gradient_reducer.residual.values()
        return {p.grad.dtype for p in model.parameters()} | {r.dtype for r in residuals}

    assert mm.launch(run, dp=2) == [{torch.float32}] * 2


def test_reductions_start_in_backward_before_the_first_layers_gradients_exist():
    def run(mesh):
        model = model_on(mesh)
        mm.compress_gradients(model, "top-k")
        first, sent = model.get_parameter("layers.0.ln1.weight"), []
        with mm.ledger() as log:
            first.register_post_accumulate_grad_hook(lambda p: sent.append(log.count("all_gather")))
            with mm.overlap_gradients(model, bucket_bytes=4000):
                model.loss(*batch(mesh)).backward()
        return sent[0], log.count("all_gather")

    for early, everything in mm.launch(run, dp=2):
        assert 2 < early < everything


def test_bytes_on_the_wire_fall_as_the_method_promises():
    def run(mesh):
        torch.set_default_dtype(torch.float32)
        sent = {}
        for method in ("none", *LOSSY):
            torch.manual_seed(0)
            model = mm.GPT(CONFIG, mesh)
            mm.compress_gradients(model, method)
            with mm.ledger() as log:
                model.loss(*batch(mesh)).backward()
                mm.finish_gradients(model)
            sent[method] = log.wire_bytes() - 8  # less the number of tokens
        return {method: sent["none"] / size for method, size in sent.items()}

    ratios = mm.launch(run, dp=2)[0]
    assert ratios["fp16"] == ratios["bf16"] == 2
    assert 20 < ratios["top-k"] < 50  # 1%, with places; at least one value of a small vector
    assert 10 < ratios["1-bit"] < 32  # a scale for each row of 16 counts here
    assert ratios["powersgd"] > 4


def test_feedback_lets_small_gradients_through_that_are_never_sent_without_it():
    def run(mesh, feedback):
        p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        buckets = GradientBuckets([p], mesh.dp)
        compress = Compression(partial(largest, 1), feedback)
        total = torch.zeros(4, dtype=torch.float64)
        for _ in range(40):
            buckets.buffers[0].copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]) / mesh.dp.size)
            total += compress(buckets, 0).wait()
        return (total / 40).tolist()

    assert mm.launch(run, False, dp=2)[0] == [4, 0, 0, 0]
    assert mm.launch(run, True, dp=2)[0] == pytest.approx([4, 3, 2, 1], abs=0.3)


def test_the_residual_outlives_new_buckets():
    def run(mesh):
        model = model_on(mesh)
        mm.compress_gradients(model, "top-k")
        tokens, targets = batch(mesh)
        model.loss(tokens, targets).backward()
        mm.finish_gradients(model)
        weight = model.get_parameter("layers.0.mlp.up.weight")
        kept = model.gradient_reducer.residual[weight].clone()
        model.zero_grad()
        model.final_norm.weight.requires_grad_(False)  # the buckets are made anew
        with mm.overlap_gradients(model, bucket_bytes=1000):
            (0.0 * model.loss(tokens, targets)).backward()
        mm.finish_gradients(model)
        left = model.gradient_reducer.residual[weight]
        return kept, weight.grad, left

    ranks = mm.launch(run, dp=2)
    came = sum(kept for kept, _, _ in ranks)
    torch.testing.assert_close(ranks[0][1] + sum(left for _, _, left in ranks), came)
    assert ranks[0][1].count_nonzero() > 0


def test_a_loss_scale_and_feedback_do_not_go_together():
    model = mm.GPT(CONFIG)
    mm.compress_gradients(model, "top-k")
    with pytest.raises(ValueError, match="another loss scale: use precision='bf16'"):
        mm.accumulate_gradients(model, [batch(model.mesh)], loss_scale=2.0)
    mm.compress_gradients(model, "top-k", feedback=False)
    mm.accumulate_gradients(model, [batch(model.mesh)], loss_scale=2.0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_and_compression_do_not_go_together_in_either_order(stage):
    def compressed_first(mesh):
        model = mm.GPT(CONFIG, mesh)
        mm.compress_gradients(model, "top-k")
        mm.Zero(model, stage)

    def zero_first(mesh):
        model = mm.GPT(CONFIG, mesh)
        mm.Zero(model, stage)
        mm.compress_gradients(model, "top-k")
        mm.accumulate_gradients(model, [batch(mesh)])

    with pytest.raises(mm.RankError, match="ZeRO already, or a gradient reducer"):
        mm.launch(compressed_first, dp=2)
    with pytest.raises(mm.RankError, match="gradients not be reduced in another way"):
        mm.launch(zero_first, dp=2)


def test_none_takes_the_compression_away():
    model = mm.GPT(CONFIG)
    mm.compress_gradients(model, "1-bit")
    assert model.gradient_reducer is not None
    mm.compress_gradients(model, "none")
    assert model.gradient_reducer is None


def test_one_rank_sends_nothing_and_loses_nothing():
    model = mm.GPT(CONFIG)
    mm.compress_gradients(model, "1-bit")
    with mm.ledger() as log:
        model.loss(*batch(model.mesh)).backward()
        before = model.full_gradients()
        mm.finish_gradients(model)
    assert len(log) == 0
    assert all(torch.equal(g, before[n]) for n, g in model.full_gradients().items())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("gzip", {}, "method='gzip': .* by none, fp16, bf16, top-k, 1-bit, powersgd"),
        ("top-k", {"k": 0}, "k=0: a share above 0 and at most 1.0, or a whole number from 1 to"),
        ("top-k", {"k": 10**9}, "k=1000000000: a share .* or a whole number from 1 to 1024"),
        ("top-k", {"k": 1.5}, "k=1.5: a share above 0"),
        ("top-k", {"k": -1}, "k=-1: a share above 0"),
        ("top-k", {"k": math.nan}, "k=nan: a share above 0"),
        ("top-k", {"k": True}, "k=True: a share above 0"),
        ("powersgd", {"rank": 0}, "rank=0: a thin matrix has a whole number of columns"),
        ("powersgd", {"rank": 1.5}, "rank=1.5: a thin matrix has a whole number of columns"),
    ],
)
def test_bad_input_names_what_is_allowed(method, options, message):
    with pytest.raises(ValueError, match=message):
        mm.compress_gradients(mm.GPT(CONFIG), method, **options)
