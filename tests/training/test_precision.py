"""Mixed precision: the loss scaler step by step, masters, fp32 sums, and ranks that skip together.

The scaler's oracles: torch's own update of a scale (a kernel of GradScaler), and the rules of
Megatron-LM and Apex written down here once more as plain loops.
"""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import pytest
import torch

import minimegatron as mm
from minimegatron.training.data import Corpus
from minimegatron.training.loop import train
from minimegatron.training.optimizer import clip_gradients, make_optimizer
from minimegatron.training.precision import (
    DynamicLossScaler,
    half_precision,
    optimizer_step,
    unscale_gradients,
)
from minimegatron.training.tokenizer import ByteTokenizer

# Copied from the course's published tables: what the systems are set to.
MEGATRON = {"initial_scale": 4294967296, "min_scale": 1.0, "growth_factor": 2.0,
            "backoff_factor": 0.5, "growth_interval": 1000, "hysteresis": 2}  # fmt: skip
TORCH = {"initial_scale": 65536, "growth_factor": 2.0, "backoff_factor": 0.5,
         "growth_interval": 2000, "hysteresis": 1, "min_scale": 0.0}  # fmt: skip
APEX = TORCH | {"max_scale": 16777216}


def overflows(seed, steps=400, share=0.3):
    """A random sequence with quiet and bad stretches: True where a step overflows."""
    generator, found = random.Random(seed), []
    while len(found) < steps:
        bad = generator.random() < share
        found += [bad and generator.random() < 0.7 for _ in range(generator.randint(1, 12))]
    return found[:steps]


def scales(scaler, found):
    history = []
    for found_inf in found:
        scaler.update(found_inf)
        history.append(scaler.scale)
    return history


def test_the_defaults_are_megatrons_published_settings():
    scaler = DynamicLossScaler()
    assert {name: getattr(scaler, name) for name in MEGATRON if name != "initial_scale"} == {
        name: value for name, value in MEGATRON.items() if name != "initial_scale"
    }
    assert scaler.scale == MEGATRON["initial_scale"] == 2**32


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interval", [1, 3, 10])
def test_with_torchs_settings_it_is_torchs_grad_scaler_step_by_step(seed, interval):
    found = overflows(seed)
    scale, tracker = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    wanted = []
    for found_inf in found:
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(found_inf)), 2.0, 0.5, interval)
        wanted.append(float(scale))
    settings = TORCH | {"growth_interval": interval}
    assert scales(DynamicLossScaler(**settings), found) == wanted


def test_with_torchs_settings_it_is_what_grad_scaler_itself_does_to_a_training_run():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
    ours = DynamicLossScaler(**TORCH | {"growth_interval": 4})
    for found_inf in overflows(7, 60):
        parameter.grad = torch.full((3,), torch.inf if found_inf else 1.0)
        theirs.scale(torch.zeros(()))  # creates the scale
        theirs.step(optimizer)
        theirs.update()
        ours.update(found_inf)
        assert ours.scale == theirs.get_scale()


def megatron(found, initial, interval, hysteresis, minimum):
    """Megatron's rule: only growth restores the hysteresis."""
    scale, quiet, left = initial, 0, hysteresis
    for found_inf in found:
        if found_inf:
            quiet, left = 0, left - 1
            scale = max(scale / 2, minimum) if left <= 0 else scale
        else:
            quiet += 1
            if quiet == interval:
                scale, quiet, left = scale * 2, 0, hysteresis
        yield scale


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_it_is_megatrons_rule_step_by_step(seed, hysteresis):
    found = overflows(seed)
    settings = MEGATRON | {"growth_interval": 5, "hysteresis": hysteresis}
    wanted = list(megatron(found, 2**32, 5, hysteresis, 1.0))
    assert scales(DynamicLossScaler(**settings), found) == wanted


def test_the_hysteresis_is_restored_by_growth_and_not_by_good_steps():
    scaler = DynamicLossScaler(8.0, growth_interval=3, hysteresis=2)
    # Forgiven, good, falls: a good step in between does not forgive again.
    assert scales(scaler, [True, False, True, True]) == [8, 8, 4, 2]
    # Growth does: the next overflow is forgiven, the one after it is not.
    assert scales(scaler, [False, False, False, True, True]) == [2, 2, 4, 4, 2]


def test_an_overflow_starts_the_count_of_good_steps_again():
    scaler = DynamicLossScaler(8.0, growth_interval=3, hysteresis=2)
    assert scales(scaler, [False, False, True, False, False, False]) == [8, 8, 8, 8, 8, 16]


def test_the_scale_stays_between_its_limits():
    scaler = DynamicLossScaler(4.0, growth_interval=1, hysteresis=1, min_scale=1.0)
    assert scales(scaler, [True] * 4) == [2, 1, 1, 1]
    apex = DynamicLossScaler(**APEX | {"growth_interval": 1})
    assert scales(apex, [False] * 10)[-3:] == [2**24] * 3
    endless = DynamicLossScaler(growth_interval=1)
    highest = torch.tensor(scales(endless, [False] * 200)[-1])
    assert torch.isfinite(highest) and torch.isinf(highest * 2)  # float32 holds no larger one


def test_settings_part_ways_on_the_same_overflows():
    found = [True, False, False, True, False, False, False, False]
    histories = [
        scales(
            DynamicLossScaler(**settings | {"initial_scale": 2**24, "growth_interval": 3}), found
        )
        for settings in (MEGATRON, TORCH, APEX)
    ]
    exponents = [[torch.tensor(s).log2().int().item() - 24 for s in h] for h in histories]
    assert exponents == [
        [0, 0, 0, -1, -1, -1, 0, 0],
        [-1, -1, -1, -2, -2, -2, -1, -1],
        [-1, -1, -1, -2, -2, -2, -1, -1],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growth_factor": 1.0}, "growth_factor=1.0.* growth_factor > 1"),
        ({"backoff_factor": 2}, "backoff_factor=2.* 0 < backoff_factor < 1"),
        ({"growth_interval": 0}, "growth_interval=0.* growth_interval >= 1"),
        ({"hysteresis": 0}, "hysteresis=0.* hysteresis >= 1"),
        ({"min_scale": -1}, "min_scale=-1.* 0 <= min_scale"),
        ({"initial_scale": 0, "min_scale": 0}, "initial_scale=0.* initial_scale > 0"),
        ({"max_scale": 2.0}, "max_scale=2.0.* initial_scale <= 2.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mm.DynamicLossScaler(**settings)


CONFIG = mm.GPTConfig(vocab_size=32, seq_length=8, hidden_size=16, num_layers=1, num_heads=4)
HALVES = [torch.float16, torch.bfloat16]


def half_model(mesh=None, dtype=torch.float16):
    torch.manual_seed(0)
    return half_precision(mm.GPT(CONFIG, mesh), dtype)


def random_batch(seed):
    tokens = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(seed))
    return tokens, tokens.roll(-1, 1)


# A text of few tokens with some order in it: a model learns it in a few dozen steps.
TEXT = torch.arange(4000).remainder(7).add(torch.arange(4000).remainder(5))
CORPUS = Corpus(ByteTokenizer(), TEXT, TEXT)


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_and_logits_are_half_the_loss_and_the_gradients_float32(dtype):
    model = half_model(dtype=dtype)
    tokens, targets = random_batch(0)
    loss = model.loss(tokens, targets)
    loss.backward()
    assert {p.dtype for p in model.parameters()} == {model(tokens).dtype} == {dtype}
    assert {p.grad.dtype for p in model.parameters()} == {loss.dtype} == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_of_microbatches_are_summed_in_float32(dtype):
    parts = [random_batch(seed) for seed in range(6)]
    model = half_model(dtype=dtype)
    wanted = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for tokens, targets in parts:  # each backward alone, added up here
        model.zero_grad()
        (model.loss(tokens, targets) / len(parts)).backward()
        for name, p in model.named_parameters():
            wanted[name] += p.grad
    model.zero_grad()
    mm.accumulate_gradients(model, parts)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, wanted[name])
        assert not torch.equal(p.grad, p.grad.to(dtype))  # half precision could not hold the sum


def test_a_long_sum_of_small_gradients_arrives():
    weight = half_model(dtype=torch.bfloat16).final_norm.weight
    weight.sum().backward()
    for _ in range(64):
        (weight.sum() * 2**-9).backward()  # 1 + 2**-9 is 1 in bf16
    assert weight.grad.unique().tolist() == [1 + 64 * 2**-9]


def test_over_dp_gradients_travel_as_float32():
    def run(mesh):
        model = half_model(mesh)
        with mm.ledger() as log:
            mm.accumulate_gradients(model, [random_batch(mesh.rank)])
            mm.finish_gradients(model)
        return log.bytes("all_reduce", axis="dp", phase="backward"), model.full_gradients()

    (size, gradients), (_, theirs) = mm.launch(run, dp=2)
    count = sum(g.numel() for g in gradients.values())
    assert size == 4 * count + 8  # and the number of tokens
    assert all(torch.equal(gradients[name], theirs[name]) for name in gradients)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_optimizer_is_adamw_on_a_float32_copy(dtype):
    model = half_model(dtype=dtype)
    masters = {name: p.detach().float() for name, p in model.named_parameters()}
    matrices = [m for m in masters.values() if m.ndim == 2]
    vectors = [m for m in masters.values() if m.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    optimizer = make_optimizer(model, lr=1e-2)
    for step in range(4):
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        model.loss(*random_batch(step)).backward()
        for name, p in model.named_parameters():
            masters[name].grad = p.grad.clone()
        optimizer.step()
        theirs.step()
        for name, p in model.named_parameters():
            # Within half's last place, or the smallest number that fp16 has.
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(p.float(), masters[name], rtol=eps, atol=2**-24)
    for piece, master in zip(optimizer.pieces, optimizer.masters, strict=True):
        torch.testing.assert_close(master, masters[piece.name], rtol=1e-5, atol=1e-7)
        assert master.dtype == torch.float32


def test_updates_too_small_for_bf16_arrive_through_the_masters_and_are_lost_without():
    def after(optimizer_of):
        model = half_model(dtype=torch.bfloat16)
        weight = model.final_norm.weight  # ones: the next smaller bf16 is 1 - 2**-8
        optimizer = optimizer_of(model)
        for _ in range(64):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
        return weight.detach().float().unique().tolist()

    rate = 2.0**-12
    assert after(lambda m: make_optimizer(m, lr=rate)) == [1 - 64 * rate]

    def without(model):
        for p in model.parameters():
            p.grad_dtype = torch.bfloat16
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)

    assert after(without) == [1.0]


def run(dtype=torch.float32, using=None, split=None, **options):
    """What `train` returns on each rank, and the dtypes of its model."""

    def on_rank(mesh):
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)
        model = mm.GPT(CONFIG, mesh)
        history = train(model, CORPUS, **({"steps": 6, "batch": 4, "lr": 1e-2} | options))
        return history, {p.dtype for p in model.parameters()}

    return mm.launch(on_rank, using=using, **(split or {}))


def test_without_rounding_the_loss_scale_changes_nothing():
    [(wanted, _)] = run(dtype=torch.float64)
    scaler = DynamicLossScaler(growth_interval=2)
    [(found, _)] = run(dtype=torch.float64, scaler=scaler)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-12)
    assert [s / 2**32 for s in found.scales] == [1, 1, 2, 2, 4, 4]
    assert found.skipped == wanted.skipped == wanted.scales == []


def clips_first(model, optimizer, max_norm, scaler=None):
    """Bug 19: the norm is that of the scaled gradients."""
    clip_gradients(model, max_norm)
    unscale_gradients(model, scaler.scale)
    optimizer.step()
    return True


def test_bug_19_a_scale_not_removed_before_clipping_clips_to_nothing():
    def largest_change(step):
        torch.manual_seed(0)
        model, scaler = mm.GPT(CONFIG), DynamicLossScaler(2.0**20)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        before = copy.deepcopy(model.full_state_dict())
        mm.accumulate_gradients(model, [random_batch(0)], scaler.scale)
        mm.finish_gradients(model)
        assert step(model, optimizer, 1.0, scaler)
        return max(float((v - before[n]).abs().max()) for n, v in model.full_state_dict().items())

    assert largest_change(clips_first) < 1e-5 * largest_change(optimizer_step)
    # In a whole run AdamW forgives one factor on all gradients, but not down to its epsilon.
    plain, right, wrong = (
        run(dtype=torch.float64, **options)[0][0].losses
        for options in (
            {},
            {"scaler": DynamicLossScaler(2.0**40)},
            {"scaler": DynamicLossScaler(2.0**40), "using": {"optimizer_step": clips_first}},
        )
    )
    assert right == pytest.approx(plain, rel=1e-9)
    assert wrong != pytest.approx(plain, rel=1e-3)


# All tokens are one that tp rank 1 holds: at this scale the gradient of its row alone overflows.
LONE_SCALE = 2.0**16
LONE_CONFIG = mm.GPTConfig(vocab_size=32, seq_length=16, hidden_size=32, num_layers=1, num_heads=4)
LONE = Corpus(ByteTokenizer(), torch.full((600,), 20), torch.full((600,), 20))


def lone_overflow(mesh, steps=1):
    torch.manual_seed(0)
    model = mm.GPT(LONE_CONFIG, mesh)
    before = {n: p.detach().half().clone() for n, p in model.named_parameters()}
    scaler = DynamicLossScaler(LONE_SCALE, hysteresis=1, growth_interval=100)
    history = train(model, LONE, steps=steps, batch=2, lr=1e-2, precision="fp16", scaler=scaler)
    finite = all(bool(p.grad.isfinite().all()) for p in model.parameters())
    moved = any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    return SimpleNamespace(
        finite=finite, moved=moved, skipped=history.skipped, scales=history.scales,
        norm=model.final_norm.weight.detach().clone(), after=scaler.scale,
    )  # fmt: skip


def test_where_one_rank_overflows_all_skip_and_nothing_but_the_scale_changes():
    first, second = mm.launch(lone_overflow, tp=2)
    assert (first.finite, second.finite) == (True, False)  # the gradients of rank 0 are fine
    for rank in (first, second):
        assert rank.skipped == [0] and not rank.moved
        assert (rank.scales, rank.after) == ([LONE_SCALE], LONE_SCALE / 2)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_under_zero_the_flag_goes_over_dp_because_a_shard_overflows_on_one_rank_only(zero):
    def on_rank(mesh):
        torch.manual_seed(0)
        model = half_precision(mm.GPT(LONE_CONFIG, mesh), torch.float16)
        mm.Zero(model, zero)
        optimizer = make_optimizer(model)
        before = model.full_state_dict()
        tokens = torch.full((2, 16), 20)
        mm.accumulate_gradients(model, [(tokens, tokens)], LONE_SCALE)
        mm.finish_gradients(model)
        finite = all(bool(p.gradient.isfinite().all()) for p in optimizer.pieces)
        with mm.ledger() as log:
            took = optimizer_step(model, optimizer, 1.0, DynamicLossScaler(LONE_SCALE))
        state = model.full_state_dict()
        moved = any(not torch.equal(state[n], before[n]) for n in state)
        return finite, took, moved, log.count("all_reduce", phase="optimizer")

    results = mm.launch(on_rank, dp=2)
    assert sorted(finite for finite, *_ in results) == [False, True]
    assert {tuple(rest) for _, *rest in results} == {(False, False, 1)}


def test_after_the_overflow_all_ranks_go_on_alike():
    first, second = mm.launch(lone_overflow, 5, tp=2)
    assert first.skipped == second.skipped != []
    assert len(first.skipped) < 5 and first.moved and second.moved
    assert first.scales == second.scales
    assert torch.equal(first.norm, second.norm)


def of_this_rank_only(model):
    """Bug 20: the flag is not shared."""
    return any(not bool(p.grad.isfinite().all()) for p in model.parameters())


def test_bug_20_a_flag_not_shared_lets_ranks_skip_different_steps_and_replicas_drift_apart():
    not_clipping = {"clip_gradients": lambda model, max_norm: None}  # clipping needs all ranks
    using = {"found_overflow": of_this_rank_only} | not_clipping
    first, second = mm.launch(lone_overflow, 5, tp=2, using=using)
    assert first.skipped != second.skipped
    assert first.scales != second.scales
    assert not torch.equal(first.norm, second.norm)  # both hold the whole of this parameter


def test_bug_20_stops_a_run_that_clips_because_only_some_ranks_come_to_the_norm():
    using = {"found_overflow": of_this_rank_only}
    with pytest.raises(mm.RankError, match="the ranks' collectives on tp first differ at"):
        mm.launch(lone_overflow, 1, tp=2, using=using, timeout=3)


@pytest.mark.parametrize("split", [{}, {"tp": 2}, {"dp": 2}])
def test_a_run_that_overflows_on_purpose_recovers_and_learns(split):
    scaler = DynamicLossScaler(2.0**24, growth_interval=20)
    results = run(steps=60, batch=8, precision="fp16", scaler=scaler, split=split)
    histories = [history for history, _ in results]
    first = histories[0]
    assert all(h.skipped == first.skipped and h.scales == first.scales for h in histories)
    # The scale falls from the second overflow on, to where gradients fit; growth tries again.
    assert first.skipped[:3] == [0, 1, 2]
    assert first.scales[:3] == [2.0**24, 2.0**24, 2.0**23]
    assert 60 - len(first.skipped) > 40
    assert max(first.scales[20:]) > min(first.scales)
    replay = DynamicLossScaler(2.0**24, growth_interval=20)
    for step, scale in enumerate(first.scales):
        assert replay.scale == scale
        replay.update(step in first.skipped)
    assert first.validation[-1][1] < 0.5 * first.losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_well_as_float32(precision):
    [(wanted, _)] = run(steps=40, batch=8)
    scaler = DynamicLossScaler(2.0**10, growth_interval=1000)
    [(found, dtypes)] = run(steps=40, batch=8, precision=precision, scaler=scaler)
    assert not found.skipped
    assert found.losses == pytest.approx(wanted.losses, rel=0.02)
    assert found.losses != pytest.approx(wanted.losses, rel=1e-5)
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}


def test_only_fp16_gets_a_scaler_unasked():
    for precision, scales in (("fp32", []), ("bf16", []), ("fp16", [2.0**32])):
        [(history, _)] = run(steps=1, precision=precision)
        assert history.scales == scales


def test_an_unknown_precision_and_a_device_without_bf16_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="precision='fp8' is not one of fp32, fp16, bf16"):
        train(mm.GPT(CONFIG), CORPUS, steps=1, batch=2, precision="fp8")
    with pytest.raises(ValueError, match="dtype=torch.int8: half precision is torch.float16 or"):
        half_precision(mm.GPT(CONFIG), torch.int8)
    old_gpu = mm.GPT(CONFIG)
    old_gpu.mesh = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(ValueError, match="Tesla V100 has no bf16: use fp16 or fp32"):
        half_precision(old_gpu, torch.bfloat16)
    half_precision(old_gpu, torch.float16)
