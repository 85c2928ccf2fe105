"""The executor: a schedule on real ranks computes what one process does, in its order."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch

import minimegatron as mm
from minimegatron.pipeline_parallel import executor
from minimegatron.pipeline_parallel.schedules import make_schedule

CONFIG = mm.GPTConfig(vocab_size=24, seq_length=8, hidden_size=16, num_layers=4, num_heads=4)
NAMES = ("gpipe", "1f1b", "zb_h1")


def batch(m, size=2, config=CONFIG):
    """m micro-batches (tokens, targets) with unequal numbers of real targets."""
    draw = torch.Generator().manual_seed(0)
    parts = []
    for n in range(m):
        both = torch.randint(config.vocab_size, (2, size, config.seq_length), generator=draw)
        both[1, :, : n % 3 + 1] = -100
        parts.append(tuple(both))
    return parts


def loss_and_gradients(mesh, schedule, config=CONFIG, **options):
    torch.set_default_dtype(torch.float64)
    model = mm.GPT(config, mesh, schedule.v)
    with mm.ledger() as log:
        loss = mm.run_schedule(model, schedule, batch(schedule.m), **options)
        mm.finish_gradients(model)
    return loss, model.full_gradients(), log


# Equal


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", [{"pp": 4}, {"tp": 2, "pp": 2, "dp": 2}], ids=str)
def test_every_number_is_that_of_one_process(name, split):
    assert mm.parity(CONFIG, schedule=name, microbatches=4, **split).ok


@pytest.mark.parametrize("m", [2, 4])
def test_interleaved_chunks_are_equal(m):
    report = mm.parity(CONFIG, pp=2, schedule="interleaved", chunks=2, microbatches=m)
    assert report.ok and "chunks=2" in report.title


@pytest.mark.parametrize(
    "features",
    [
        {"recompute": "full", "schedule": "zb_h1"},
        {"recompute": "selective", "schedule": "zb_h1", "sequence_parallel": True},
        {"dropout": 0.1, "attention": "explicit", "recompute": "full"},
        {"layer_norm": "post", "tie_embeddings": False},
    ],
    ids=str,
)
def test_features_go_through_a_pipeline(features):
    assert mm.parity(CONFIG, tp=2, pp=2, microbatches=2, **features).ok


def test_stages_may_be_uneven():
    assert mm.parity(CONFIG, pp=3, microbatches=3, layers_per_stage=[1, 2, 1]).ok


def test_zero_1_shards_each_stage_over_dp():
    assert mm.parity(CONFIG, pp=2, dp=2, microbatches=2, zero=1).ok


def test_chunks_on_one_rank_need_no_messages():
    loss, gradients, log = mm.launch(loss_and_gradients, mm.interleaved(1, 2, 2))[0]
    _, wanted, _ = mm.launch(loss_and_gradients, mm.gpipe(1, 2))[0]
    assert len(log) == 0
    assert all(torch.allclose(gradients[n], wanted[n], rtol=0, atol=1e-14) for n in wanted)


# In the schedule's order


@pytest.mark.parametrize("schedule", [mm.gpipe(4, 4), mm.one_f_one_b(4, 6), mm.zb_h1(4, 4)])
def test_messages_leave_each_rank_in_the_order_of_the_schedule(schedule):
    phases = {"SEND_F": "forward", "SEND_B": "backward"}
    for rank, (_, _, log) in enumerate(mm.launch(loss_and_gradients, schedule, pp=4)):
        sent = log.select("send", axis="pp")
        actions = [a for a in schedule.with_messages().actions[rank] if a.kind in phases]
        wanted = [phases[action.kind] for action in actions]
        tied = ["backward"] if rank in (0, 3) else []  # the two copies of the embedding, at the end
        assert [r.phase for r in sent] == wanted + tied
        size = 8 * 2 * CONFIG.seq_length * CONFIG.hidden_size
        assert {r.bytes for r in sent[: len(wanted)]} == {size}


def test_another_order_gives_the_same_gradients_to_the_last_bit():
    runs = [mm.launch(loss_and_gradients, make_schedule(n, 2, 4), pp=2)[0] for n in NAMES[:2]]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


class Watched(executor._Step):
    """Notes how many micro-batches are held after each action."""

    most = 0

    def _forward(self, action):
        super()._forward(action)
        type(self).most = max(self.most, len(self.held))


@pytest.mark.parametrize("schedule", [mm.gpipe(4, 6), mm.one_f_one_b(4, 6), mm.zb_h1(4, 6)])
def test_a_rank_holds_as_many_activations_as_the_simulator_says(schedule):
    def watched(mesh):
        Watched.most = 0
        executor._Step = Watched
        loss_and_gradients(mesh, schedule)
        return Watched.most

    held = mm.launch(watched, pp=4)
    assert held == mm.simulate(schedule).peak_in_flight


# The split backward


def test_w_makes_the_weights_gradients_and_i_does_not():
    def grads_seen(mesh):
        seen = {}
        model = mm.GPT(CONFIG, mesh)

        class Seeing(executor._Step):
            def _weights(self, action):
                weights = {n: p.grad is None for n, p in model.named_parameters()}
                seen.update(weights)
                super()._weights(action)

        executor._Step = Seeing
        mm.run_schedule(model, mm.zb_h1(1, 1), batch(1))
        return seen, {n: p.grad is None for n, p in model.named_parameters()}

    before, after = mm.launch(grads_seen)[0]
    waiting = {name for name, missing in before.items() if missing}
    linear = ("qkv.weight", "qkv.bias", "out.weight", "up.weight", "up.bias", "down.weight")
    assert waiting == {n for n in before if n.endswith(linear)}
    assert not any(after.values())


# Evaluation


def evaluated(mesh, chunks=1):
    model = mm.GPT(CONFIG, mesh, chunks).eval()
    parts = batch(2)
    with torch.no_grad(), mm.ledger() as log:
        loss = mm.run_schedule(model, make_schedule("gpipe", mesh.pp.size, 2), parts)
    written = mm.generate(model, parts[0][0][:, :3], 4)
    return loss, written, log.count(phase="backward"), model.tokens_since_finish


def test_without_gradients_only_forwards_run():
    alone, in_stages = mm.launch(evaluated)[0], mm.launch(evaluated, tp=2, pp=2)
    for loss, written, backward, tokens in in_stages:
        assert torch.allclose(loss, alone[0], rtol=1e-5) and torch.equal(written, alone[1])
        assert backward == 0 and tokens == 0


# One model, however it is cut


def test_initial_weights_do_not_depend_on_the_stages():
    def state(mesh, chunks=1):
        return mm.GPT(CONFIG, mesh, chunks).full_state_dict()

    wanted = mm.launch(state)[0]
    for found in [*mm.launch(state, pp=4), *mm.launch(state, 2, pp=2)]:
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_state_goes_back_into_stages_and_names_what_is_missing():
    def back(mesh):
        model = mm.GPT(CONFIG, mesh)
        state = {name: value + 1 for name, value in model.full_state_dict().items()}
        model.load_full_state_dict(state)
        again = model.full_state_dict()
        del state["layers.3.ln1.weight"]
        with pytest.raises(ValueError, match=r"lacks \['layers.3.ln1.weight'\]"):
            model.load_full_state_dict(state)
        return all(torch.equal(again[name], state[name]) for name in state)

    assert all(mm.launch(back, pp=2))


# Bugs put in on purpose


def test_bug_16_tied_copies_whose_gradients_are_not_summed_do_not_pass():
    wrong = {"sum_tied_gradients": lambda model: None}
    report = mm.parity(CONFIG, pp=2, steps=1, microbatches=2, using=wrong)
    assert not report.ok and report.worst["gradients"] == "embedding.word.weight"
    untied = replace(CONFIG, tie_embeddings=False)
    assert mm.parity(untied, pp=2, steps=1, microbatches=2, using=wrong).ok  # nothing is tied


def test_bug_15_a_mean_of_microbatch_means_does_not_pass():
    def mean_of_means(model, schedule, microbatches, **options):
        real = [int((targets != -100).sum()) for _, targets in microbatches]
        mean_loss = model.mean_loss

        def equal_shares(logits, targets):
            share = int((targets != -100).sum()) / sum(real)
            return mean_loss(logits, targets) / (share * len(real))

        vars(model)["mean_loss"] = equal_shares
        return mm.run_schedule(model, schedule, microbatches, **options)

    report = mm.parity(CONFIG, pp=2, steps=1, microbatches=2, using={"run_schedule": mean_of_means})
    assert not report.ok


def test_bug_18_both_neighbours_send_first():
    """Plain 1F1B: rank 0 sends forward while rank 1 sends backward."""
    schedule = mm.one_f_one_b(2, 4)
    with pytest.raises(mm.ScheduleError, match="deadlock with blocking sends"):
        schedule.validate(sends="blocking")

    def run_anyway(mesh):
        model = mm.GPT(CONFIG, mesh)
        mm.run_schedule(model, schedule, batch(4), sends="blocking", check=False)

    with pytest.raises(mm.RankTimeout) as caught:
        mm.launch(run_anyway, pp=2, timeout=1)
    assert "rank 0 waits in send to rank 1 on pp" in str(caught.value)
    assert "rank 1 waits in send to rank 0 on pp" in str(caught.value)


@pytest.mark.parametrize("bug", [24, 25])
def test_bugs_24_and_25_a_message_left_out_and_two_swapped(bug):
    schedule = mm.gpipe(2, 2).with_messages()
    receiver = schedule.actions[1]
    if bug == 24:
        sender = [a for a in schedule.actions[0] if a != mm.Action("SEND_F", 1)]
        actions = [sender, receiver]
    else:
        swap = {0: 1, 1: 0}
        sender = [
            a._replace(microbatch=swap[a.microbatch]) if a.kind == "SEND_F" else a
            for a in schedule.actions[0]
        ]
        actions = [sender, receiver]
    with pytest.raises(mm.ScheduleError, match="rank [01]"):
        replace(schedule, actions=actions).validate()


# A rank that fails, and wrong sizes


def test_a_dead_stage_names_itself():
    def die(mesh):
        model = mm.GPT(CONFIG, mesh)
        if mesh.pp.rank == 1:
            model.stage = lambda chunk, x: os.kill(os.getpid(), signal.SIGKILL)
        mm.run_schedule(model, mm.one_f_one_b(4, 4), batch(4))

    with pytest.raises(mm.RankError) as caught:
        mm.launch(die, pp=4)
    assert caught.value.rank == 1 and "SIGKILL" in str(caught.value)
    assert len(mm.launch(lambda mesh: mesh.rank, pp=4)) == 4  # and the next call works


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"pp": 3}, r"num_layers 4 does not divide by pp=3 x chunks=1"),
        ({"pp": 2, "layers_per_stage": [1, 2]}, r"2 stages of at least 1 layer have 4 in all"),
        ({"pp": 2, "schedule": "zigzag"}, r"'zigzag' is not one of gpipe, 1f1b"),
        ({"pp": 2, "chunks": 2}, r"only 'interleaved'"),
        ({"pp": 2, "chunks": 2, "schedule": "interleaved", "microbatches": 3}, "p=2"),
        ({"pp": 4, "schedule": "zb_h1", "microbatches": 2}, "p=4"),
        ({"pp": 2, "zero": 2}, "zero=1 sends once a step and goes with pp"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_before_any_rank_starts(features, words):
    with pytest.raises(ValueError, match=words):
        mm.parity(CONFIG, **features)


def test_a_model_in_stages_does_not_run_alone():
    def alone(mesh):
        mm.GPT(CONFIG, mesh)(batch(1)[0][0])

    with pytest.raises(mm.RankError, match="use mm.run_schedule"):
        mm.launch(alone, pp=2)


def test_a_schedule_for_another_split_is_refused():
    with pytest.raises(ValueError, match="the schedule is for {'p': 2, 'v': 1, 'm': 2}"):
        mm.run_schedule(mm.GPT(CONFIG), mm.gpipe(2, 2), batch(2))
    with pytest.raises(ValueError, match="V-shaped"):
        mm.run_schedule(mm.GPT(CONFIG, chunks=2), mm.zbv(1, 2), batch(2))
