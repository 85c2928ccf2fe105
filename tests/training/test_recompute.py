"""What is saved between forward and backward: counted once, freed in time, moved if asked."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import minimegatron as mm

CONFIG = mm.GPTConfig(
    vocab_size=51, seq_length=16, hidden_size=32, num_layers=3, num_heads=4,
    dropout=0.1, attention="explicit",
)  # fmt: skip


def step(mesh, config, offload=False):
    """A step's record, its gradients, and the bytes held between forward and backward."""
    torch.manual_seed(1)
    model, tokens = mm.GPT(config, mesh), torch.arange(32).view(2, 16)
    with mm.saved_tensors(model, offload=offload) as saved:
        loss = model.loss(tokens, tokens)
        between = saved.held[-1]
        loss.backward()
    mm.finish_gradients(model)
    return saved, model.full_gradients(), between


def bytes_of(tp=1, **changes):
    return mm.launch(step, dataclasses.replace(CONFIG, **changes), tp=tp)[0][0].bytes()


def test_each_feature_makes_the_saved_bytes_fall():
    none, tp = bytes_of(), bytes_of(tp=2)
    both = bytes_of(tp=2, sequence_parallel=True)
    selective = bytes_of(tp=2, sequence_parallel=True, recompute="selective")
    full = bytes_of(tp=2, sequence_parallel=True, recompute="full")
    assert none > 1.3 * tp > 1.3 * 1.1 * both > 1.3 * 1.1 * 1.1 * selective
    assert selective > 2 * full
    assert 1.9 < none / both < 2.1  # everything is split in two but the token numbers


def test_a_gathered_input_that_is_kept_costs_what_it_would_be_gathered_again_for():
    split = bytes_of(tp=4, sequence_parallel=True)
    kept = bytes_of(tp=4, sequence_parallel=True, keep_gathered=True)
    gathered = 2 * 16 * 32 * 4  # batch x seq x hidden, in float32
    assert kept - split == 3 / 4 * gathered * (2 * CONFIG.num_layers + 1)


def test_each_storage_counts_once_and_parameters_not_at_all():
    model = mm.GPT(dataclasses.replace(CONFIG, dropout=0.0, num_layers=1))
    x = torch.randn(2, 16, 32)
    with mm.saved_tensors(model) as saved:
        y = x.requires_grad_() * 1.0
        z = (y[:, :8] * y[:, 8:]).sin()  # two views of one storage, and a product
    assert [r.bytes for r in saved.records] == [2 * 16 * 32 * 4, 2 * 8 * 32 * 4]
    assert saved.records[0].place == ""
    with mm.saved_tensors(model) as saved:
        z = torch.nn.functional.linear(x, model.layers["0"].mlp.up.weight)
        z = z @ model.embedding.word.weight.repeat(1, 4).t()
    # x, the first product, and the repeated weight: a tensor of its own
    assert {r.shape for r in saved.records} == {(32, 32), (32, 128), (128, 51)}


def test_what_is_held_rises_in_forward_and_falls_to_nothing_in_backward():
    (saved, _, between) = mm.launch(step, CONFIG)[0]
    assert between == max(saved.held) == saved.bytes() and saved.held[-1] == 0
    assert not saved.select(phase="recompute")


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recompute_holds_one_layer_at_a_time(recompute):
    plain, _, _ = mm.launch(step, CONFIG)[0]
    (saved, _, between) = mm.launch(step, dataclasses.replace(CONFIG, recompute=recompute))[0]
    assert between == saved.bytes() < plain.bytes()
    again = saved.bytes(phase="recompute")
    place = "layers.1" if recompute == "full" else "layers.1.attention"
    layer = plain.bytes(place)
    if recompute == "full":
        assert again == CONFIG.num_layers * (layer - 2 * 16 * 32 * 4)  # its input is held already
        assert between < max(saved.held) < between + layer
    assert max(saved.held) < plain.bytes() and saved.held[-1] == 0


def test_places_are_the_modules_names():
    (saved, _, _) = mm.launch(step, CONFIG)[0]
    assert {r.place for r in saved.select("layers.1.mlp")} == {
        f"layers.1.mlp{part}" for part in ("", ".up", ".down")
    }
    parts = ("ln1", "ln2", "attention", "mlp")
    masks = sum(r.bytes for r in saved.records if r.place == "layers.1")
    assert saved.bytes("layers.1") == masks + sum(saved.bytes(f"layers.1.{p}") for p in parts)
    assert saved.bytes("layers.1.ln") == 0  # a name, not the beginning of one


@pytest.mark.parametrize("changes", [{}, {"recompute": "full"}, {"sequence_parallel": True}])
def test_offloading_changes_no_gradient_and_leaves_nothing_on_the_device(changes):
    config = dataclasses.replace(CONFIG, **changes)
    plain, moved = (mm.launch(step, config, offload, tp=2)[0] for offload in (False, True))
    torch.testing.assert_close(moved[1], plain[1], rtol=0, atol=0)
    assert moved[0].held == [0] and max(plain[0].held) > 0
    assert moved[0].bytes() >= plain[0].bytes()  # a storage saved twice travels twice


def test_hooks_are_gone_after_an_error_too():
    model = mm.GPT(CONFIG)
    with pytest.raises(IndexError), mm.saved_tensors(model):
        model(torch.full((1, 3), 51))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_gpus_peak_is_measured_where_there_is_one():
    (saved, _, _) = mm.launch(step, CONFIG)[0]
    if torch.cuda.is_available():
        assert saved.gpu_peak > max(saved.held)
    else:
        assert saved.gpu_peak is None
