"""GPT-2 of Hugging Face and ours are the same function."""

from __future__ import annotations

import json

import pytest
import torch

import minimegatron as mm

transformers = pytest.importorskip("transformers")


def gpt2(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 51, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 4}
    special = {"bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes | special | changes)))
    with torch.no_grad():
        for parameter in model.parameters():  # biases of zero would hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


TOKENS = torch.arange(33).view(3, 11) % 51


def logits_of(mesh, source):
    model = mm.GPT.from_huggingface(source, mesh)
    return mm.all_gather(model(TOKENS).detach(), mesh.tp, -1)[..., : model.config.vocab_size]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(("dtype", "band"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_logits_equal_those_of_transformers(tmp_path, tp, tie, dtype, band):
    theirs = gpt2(dtype, tie_word_embeddings=tie)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    for got in mm.launch(logits_of, str(tmp_path), tp=tp):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=band, atol=band)


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "bare"])
def test_a_folder_gives_the_same_model(tmp_path, form):
    theirs = gpt2()
    if form in ("safetensors", "shards"):
        theirs.save_pretrained(tmp_path, max_shard_size="20KB" if form == "shards" else "1GB")
        assert len(list(tmp_path.glob("*.safetensors"))) == 1 or form == "shards"
    else:
        (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))
        state = theirs.state_dict()
        if form == "bare":  # as the first checkpoints, with the causal mask among the tensors
            state = {n.removeprefix("transformer."): v for n, v in state.items() if "lm_" not in n}
            state["h.0.attn.bias"] = torch.ones(1, 1, 12, 12)
        torch.save(state, tmp_path / "pytorch_model.bin")
    expected = logits_of(mm.single(), theirs)
    assert torch.equal(logits_of(mm.single(), str(tmp_path)), expected)
    assert torch.equal(logits_of(mm.single(), tmp_path), expected)
    assert not mm.GPT.from_huggingface(tmp_path).training


def test_sizes_rates_and_modes_are_taken_over():
    theirs = gpt2(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2, initializer_range=0.03)
    ours = mm.GPT.from_huggingface(theirs)
    assert ours.config == mm.GPTConfig(51, 12, 16, 2, 4, dropout=0.2, init_std=0.03)
    assert not ours.training and mm.GPT.from_huggingface(theirs.train()).training
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"n_inner": 20}, "n_inner=20.*64"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"resid_pdrop": 0.0}, "differ"),
    ],
)
def test_a_model_that_is_not_gpt2_as_built_here_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        mm.GPT.from_huggingface(gpt2(**change))


def test_a_folder_or_object_without_a_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        mm.GPT.from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        mm.GPT.from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type='bert'"):
        mm.GPT.from_huggingface(tmp_path)
    with pytest.raises(ValueError, match="neither a GPT2LMHeadModel nor a folder"):
        mm.GPT.from_huggingface(3)
