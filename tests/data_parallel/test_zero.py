"""ZeRO, against plain data parallelism, torch's own, and the bytes that the papers state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

import minimegatron as mm
from minimegatron.data_parallel.pieces import pieces

CONFIG = mm.GPTConfig(vocab_size=19, seq_length=6, hidden_size=16, num_layers=3, num_heads=4)
SMALL = 16_000  # bytes of a bucket: our model fills several
STAGES = [1, 2, 3]


def batch(size, unequal=True, seed=0):
    """Tokens and targets (size, 6); if unequal, each row has another number of real targets."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(19, (2, size, 6), generator=generator)
    for i in range(size if unequal else 0):
        targets[i, i % 5 + 1 :] = -100
    return tokens, targets


def my_parts(mesh, microbatches=1, **options):
    """This rank's rows of the batch, in micro-batches."""
    mine = [t.tensor_split(mesh.dp.size)[mesh.dp.rank] for t in batch(12, **options)]
    return list(zip(*(t.tensor_split(microbatches) for t in mine), strict=True))


def model_on(mesh, stage, config=CONFIG, dtype=torch.float64, frozen=(), bucket_bytes=SMALL):
    torch.set_default_dtype(torch.float32 if dtype.itemsize == 2 else dtype)
    torch.manual_seed(0)
    model = mm.GPT(config, mesh)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if dtype.itemsize == 2:
        mm.half_precision(model, dtype)
    if stage:
        mm.Zero(model, stage, bucket_bytes)
    return model


def gradients(model, microbatches=1, **options):
    mm.accumulate_gradients(model, my_parts(model.mesh, microbatches, **options))
    mm.finish_gradients(model)


def step(model, optimizer, microbatches=1):
    """A step of training: gradients, norm, gradients once clipped, a loss, parameters."""
    optimizer.zero_grad()
    optimizer.zero_grad()  # twice is as good as once
    gradients(model, microbatches)
    before = model.full_gradients()
    norm = mm.clip_gradients(model, 0.1)
    after = model.full_gradients()
    optimizer.step()
    with torch.no_grad():
        loss = model.loss(*batch(12))
    return [before, {"norm": norm}, after, {"loss": loss}, model.full_state_dict()]


def train(mesh, stage, microbatches=1, **options):
    model = model_on(mesh, stage, **options)
    optimizer = mm.make_optimizer(model)
    return [made for _ in range(3) for made in step(model, optimizer, microbatches)]


def assert_equal(found, wanted, rtol=1e-10, atol=1e-13):
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.keys() == b.keys()
        for name in b:
            where = f"tensor {name} of item {i}"
            torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=where)


# Equal to plain data parallelism, and to torch's own


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("split", "changed", "options"),
    [
        ({"dp": 3}, {}, {}),  # no bucket divides by three
        ({"dp": 2}, {"tie_embeddings": False, "layer_norm": "post"}, {"microbatches": 3}),
        ({"dp": 2, "tp": 2}, {"sequence_parallel": True}, {"microbatches": 2}),
        ({"dp": 2}, {}, {"frozen": ("embedding.word.weight", "layers.1.mlp.up.weight")}),
    ],
    ids=["padding", "untied", "tp", "frozen"],
)
def test_three_steps_are_those_of_plain_data_parallelism(stage, split, changed, options):
    config = dataclasses.replace(CONFIG, **changed)

    def run(mesh):
        return [train(mesh, zero, config=config, **options) for zero in (stage, 0)]

    for found, wanted in mm.launch(run, **split):
        assert_equal(found, wanted)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_stage_3_gathers_once_for_a_layers_recomputation_and_its_backward(recompute):
    config = dataclasses.replace(CONFIG, recompute=recompute)

    def run(mesh):
        found = train(mesh, 3, config=config)
        model = model_on(mesh, 3, config=config)
        with mm.ledger() as log:
            gradients(model)
        return found, train(mesh, 0), log.count("all_gather", axis="dp")

    for found, wanted, gathers in mm.launch(run, dp=2):
        assert_equal(found, wanted)
        assert gathers == 2 * (CONFIG.num_layers + 1)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("tied", [True, False])
def test_stage_1_goes_with_a_pipeline_and_sends_gradients_once_a_step(schedule, tied):
    config = dataclasses.replace(CONFIG, num_layers=2, tie_embeddings=tied)
    how = {"pp": 2, "dp": 2, "microbatches": 4, "schedule": schedule}
    plain, shared = mm.parity(config, **how), mm.parity(config, zero=1, **how)
    assert shared.ok, shared
    for before, after in zip(plain.ledger, shared.ledger, strict=True):
        sent = after.wire_bytes(axis="dp") - before.wire_bytes(axis="dp")
        assert 0 <= sent <= 100  # padding
        assert after.count("reduce_scatter") == after.count("all_gather", axis="dp") == 1


def torch_zero(mesh, rows):
    """Stage 1 by torch: DistributedDataParallel and ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = model_on(mm.single(), 0)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.0}
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **options)
    dense_steps(parallel, optimizer, rows)
    moments = optimizer.optim.state.values()
    held = sum(t.numel() for state in moments for t in state.values() if t.ndim)
    return {name: p.detach() for name, p in model.named_parameters()}, held


def torch_fsdp(mesh, rows):
    """Stage 3 by torch: FSDP2, each layer a unit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = model_on(mm.single(), 0)
    torch_mesh = init_device_mesh("cpu", (mesh.dp.size,))
    for module in (*model.layers.values(), model):
        fully_shard(module, mesh=torch_mesh)
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    dense_steps(model, optimizer, rows)
    held = sum(p.to_local().numel() for p in model.parameters())
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}, held


def dense_steps(model, optimizer, rows):
    for _ in range(3):
        optimizer.zero_grad()
        [(tokens, targets)] = rows
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize(("stage", "reference"), [(1, torch_zero), (3, torch_fsdp)])
def test_torchs_own_sharding_makes_the_same_parameters_and_keeps_as_much(stage, reference):
    def run(mesh):
        rows = my_parts(mesh, unequal=False)
        wanted, held = reference(mesh, rows)
        model = model_on(mesh, stage)
        optimizer = mm.make_optimizer(model, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            gradients(model, unequal=False)
            optimizer.step()
        mine = sum(piece.values.numel() for piece in pieces(model))
        return model.full_state_dict(), wanted, mine * (2 if stage == 1 else 1), held

    results = mm.launch(run, dp=2)
    for found, wanted, mine, _ in results:
        assert_equal([found], [wanted], rtol=1e-8)
        # torch's optimizer deals out whole parameters, so compare the rank that has most.
        assert mine <= 1.02 * max(held for *_, held in results)


@pytest.mark.parametrize("stage", STAGES)
def test_half_precision_with_zero_is_half_precision_without(stage):
    def run(mesh):
        return [train(mesh, zero, dtype=torch.bfloat16) for zero in (stage, 0)]

    for found, wanted in mm.launch(run, dp=2):
        assert found[-1]["final_norm.weight"].dtype == torch.bfloat16
        assert_equal(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", STAGES)
def test_two_models_train_side_by_side(stage):
    def run(mesh):
        made = []
        pair = [model_on(mesh, stage), model_on(mesh, stage)]
        optimizers = [mm.make_optimizer(model) for model in pair]
        for _ in range(3):
            for model, optimizer in zip(pair, optimizers, strict=True):
                made.append(step(model, optimizer))
        return sum(made[0::2], []), sum(made[1::2], []), train(mesh, 0)

    for first, second, wanted in mm.launch(run, dp=2):
        assert_equal(first, wanted)
        assert_equal(second, wanted)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_come_out_right_without_overlap_and_after_a_thrown_away_backward(stage):
    def run(mesh):
        model, plain = model_on(mesh, stage), model_on(mesh, 0)
        gradients(model)  # thrown away
        for either in (model, plain):
            either.zero_grad()
            for tokens, targets in my_parts(mesh, 2):
                either.loss(tokens, targets).backward()
            mm.finish_gradients(either)
        found = [model.full_gradients()]
        model.zero_grad()
        return found, [plain.full_gradients()], model.full_gradients()

    for found, wanted, cleared in mm.launch(run, dp=2):
        assert_equal(found, wanted)
        if stage > 1:  # with stage 1 the buckets are the gradients, and were let go
            assert not any(gradient.any() for gradient in cleared.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_loaded_state_is_the_models_on_every_rank_and_in_every_piece(stage):
    def run(mesh):
        model = model_on(mesh, stage)
        state = {
            name: 1000.0 * i + torch.arange(float(p.numel())).view(p.shape)
            for i, (name, p) in enumerate(model.named_parameters())
        }
        model.load_full_state_dict(state)
        mine = [(piece.name, piece.values.clone()) for piece in pieces(model)]
        return state, model.full_state_dict(), mine

    ranks = mm.launch(run, dp=3)
    for state, found, _ in ranks:
        assert_equal([found], [state])
    for name, value in ranks[0][0].items():
        parts = [values for *_, mine in ranks for piece, values in mine if piece == name]
        assert torch.cat(parts).tolist() == value.flatten().tolist()  # each number in one piece
    cut = [name for rank in ranks for name, _ in rank[2]]
    assert len(cut) > len(ranks[0][0])  # shards cross the borders of parameters


# What a rank keeps

# tables.json, megatron_distopt_bytes_per_param: all that training keeps for a parameter on a rank
# of d. Megatron-LM's optimizer is stage 1; stages 2 and 3 divide more of the same terms.
BYTES = {
    torch.float32: [lambda d: 16, lambda d: 8 + 8 / d, lambda d: 4 + 12 / d, lambda d: 16 / d],
    torch.bfloat16: [lambda d: 18, lambda d: 6 + 12 / d, lambda d: 2 + 16 / d, lambda d: 18 / d],
}


def kept(tensors):
    """Bytes of the storages behind the tensors, each counted once."""
    storages = [t.untyped_storage() for t in tensors if t is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}.values())


def parameter_bytes(model):
    return kept([*model.parameters(), *(piece.values for piece in pieces(model))])


def gradient_bytes(model):
    buffers = model.gradient_buckets.buffers if "gradient_buckets" in vars(model) else []
    whole = [p.grad for p in model.parameters()]
    return kept([*whole, *buffers, *(piece.gradient for piece in pieces(model))])


@pytest.mark.parametrize("dp", [2, 4])
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_a_rank_keeps_the_bytes_that_the_table_states(dtype, dp):
    def run(mesh, stage):
        model = model_on(mesh, stage, dtype=dtype)
        optimizer = mm.make_optimizer(model)
        step(model, optimizer)
        moments = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
        masters = optimizer.masters if dtype == torch.bfloat16 else []
        found = [parameter_bytes(model), gradient_bytes(model), kept([*moments, *masters])]
        return found, sum(p.numel() for p in model.parameters()), len(model.gradient_buckets.groups)

    for stage in range(4):
        parts = []
        for found, n, buckets in mm.launch(run, stage, dp=dp):
            padding = 18 * buckets * dp  # bytes: less than a number per rank and bucket
            assert abs(sum(found) - BYTES[dtype][stage](dp) * n) <= padding
            parts.append([round(part / n, 1) for part in found])
        half = dtype == torch.bfloat16
        whole = [2, 4, 12] if half else [4, 4, 8]
        split = [stage >= 3, stage >= 2, stage >= 1]
        wanted = [w / dp if s else w for w, s in zip(whole, split, strict=True)]
        assert parts[0] == pytest.approx(wanted, rel=0.05)


def test_from_stage_2_on_gradients_are_never_all_there():
    def run(mesh, stage):
        model = model_on(mesh, stage, bucket_bytes=2000)
        seen = []
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda _: seen.append(gradient_bytes(model)))
        gradients(model, microbatches=2)
        buckets = [8 * buffer.numel() for buffer in model.gradient_buckets.buffers]
        layer = 8 * sum(p.numel() for p in model.layers["0"].parameters())
        return max(seen), sum(buckets), max(buckets), layer

    for most, whole, *_ in mm.launch(run, 1, dp=2):
        assert most >= whole
    for stage, copies in ((2, 3), (3, 3)):
        for most, whole, bucket, _ in mm.launch(run, stage, dp=2):
            # Its shard; one bucket being filled, one being sent, and what autograd has just made.
            assert whole / 2 < most <= whole / 2 + copies * bucket
            assert stage == 3 or most < 0.8 * whole


@pytest.mark.parametrize("how", ["overlapped", "plain backward", "no gradients"])
def test_stage_3_has_one_layer_whole_at_a_time_and_none_in_between(how):
    def run(mesh):
        model = model_on(mesh, 3)
        resting, seen = parameter_bytes(model), []
        for layer in model.layers.values():
            layer.mlp.register_forward_hook(lambda *_: seen.append(parameter_bytes(model)))
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda _: seen.append(parameter_bytes(model)))
        if how == "overlapped":
            gradients(model)
        elif how == "plain backward":
            model.loss(*batch(2)).backward()
            mm.finish_gradients(model)
        else:
            with torch.no_grad():
                model.loss(*batch(2))
        layer = sum(p.numel() for p in model.layers["0"].parameters())
        return resting, seen, parameter_bytes(model), 8 * layer

    for resting, seen, afterwards, layer in mm.launch(run, dp=2):
        rest = 2 * resting - CONFIG.num_layers * layer  # embeddings, final norm
        assert len(seen) >= CONFIG.num_layers
        assert max(seen) <= resting + rest + layer + 64
        assert afterwards == resting


# What is sent


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("dp", [2, 3])
def test_stages_1_and_2_send_the_bytes_of_plain_dp_and_stage_3_half_as_many_again(dp, microbatches):
    def run(mesh, stage):
        model = model_on(mesh, stage)
        optimizer = mm.make_optimizer(model)
        with mm.ledger() as log:
            gradients(model, microbatches)
            optimizer.step()
        size = 8 * sum(len(buffer) for buffer in model.gradient_buckets.buffers)
        return log, size

    m, share = microbatches, (dp - 1) / dp
    # In rings' (n-1)/n of the model. Stages 2 and 3 may not keep gradients for the last
    # micro-batch, stage 3 not even parameters.
    for stage, times in enumerate([2, 2, m + 1, 3 * m]):
        for log, size in mm.launch(run, stage, dp=dp):
            counted = log.wire_bytes("all_reduce", axis="dp") if stage else 0
            counts = m if stage > 1 else 1
            tokens = 2 * share * 8 * counts  # the number of tokens, in float64
            assert log.wire_bytes(axis="dp") == pytest.approx(times * share * size + tokens)
            assert counted == (tokens if stage else 0)
            gathered = {0: None, 1: "optimizer", 2: "optimizer", 3: "forward"}[stage]
            assert (log.count("all_gather", phase=gathered) > 0) == (stage > 0)
            if stage == 3:
                assert log.count("all_gather", phase="optimizer") == 0
                in_backward = log.bytes("all_gather", phase="backward")
                assert in_backward == log.bytes("all_gather", phase="forward")


# Bugs and bad input


@pytest.mark.parametrize("stage", [1, 2])
def test_bug_23_nobody_gathers_is_caught(stage):
    class NobodyGathers(mm.Zero):
        def finish_step(self):
            pass

    assert mm.parity(CONFIG, dp=2, zero=stage).ok
    report = mm.parity(CONFIG, dp=2, zero=stage, using={"Zero": NobodyGathers})
    assert not report.ok
    assert report.errors["parameters"] > 1e-3
    assert mm.parity(CONFIG, dp=1, zero=stage, using={"Zero": NobodyGathers}).ok


def test_on_dp_1_it_says_a_word_and_shards_nothing(capsys):
    model = model_on(mm.single(), 0)
    torch.set_default_dtype(torch.float32)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    mm.Zero(model, 2).finish_step()
    assert capsys.readouterr().out == (
        "zero=2: nothing is sharded, as dp=1 has no other rank to share with\n"
    )
    assert model.zero is None
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert type(mm.make_optimizer(model)) is torch.optim.AdamW


@pytest.mark.parametrize("stage", [0, 4, "1"])
def test_another_stage_is_refused(stage):
    with pytest.raises(ValueError, match=f"zero={stage!r} is not a stage of ZeRO: 1, 2 or 3"):
        mm.Zero(mm.GPT(CONFIG), stage)


def test_what_does_not_go_with_zero_is_refused():
    def run(mesh):
        said = []

        def refused(do):
            try:
                do()
            except (ValueError, RuntimeError) as error:
                said.append(str(error))

        model = model_on(mesh, 1)
        refused(lambda: mm.Zero(model, 1))
        with_reducer = model_on(mesh, 0)
        mm.compress_gradients(with_reducer, "bf16")
        refused(lambda: mm.Zero(with_reducer, 1))
        model.get_parameter("final_norm.bias").requires_grad_(False)
        refused(lambda: gradients(model))
        refused(lambda: mm.Zero(mm.GPT(CONFIG, mesh, chunks=3), 2))
        refused(lambda: gradients(mm.half_precision(model_on(mesh, 1), torch.bfloat16)))
        reduced_elsewhere = model_on(mesh, 1)
        mm.reduce_by_nodes(reduced_elsewhere, 1)
        refused(lambda: gradients(reduced_elsewhere))
        return said

    for said in mm.launch(run, dp=2):
        assert len(said) == 6
        assert said[0] == said[1]
        assert "has ZeRO already, or a gradient reducer" in said[0]
        assert said[2] == said[4] == said[5]
        assert "after Zero(model, ...) parameters cannot be frozen" in said[2]
        assert "zero=2 in a pipeline of 3 stages" in said[3]
