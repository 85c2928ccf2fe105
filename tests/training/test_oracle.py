"""The oracle itself, against transformers' GPT-2 and against what it may not know."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch
from torch.nn import functional as F

from minimegatron.training import oracle

HIDDEN, LAYERS, HEADS, VOCAB, SEQ = 32, 2, 4, 41, 10


def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=SEQ, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def dense_names():
    """Our name -> (theirs, transposed): GPT-2's Conv1D holds its matrices the other way round."""
    names = {
        "embedding.word.weight": ("transformer.wte.weight", False),
        "embedding.position.weight": ("transformer.wpe.weight", False),
        "final_norm.weight": ("transformer.ln_f.weight", False),
        "final_norm.bias": ("transformer.ln_f.bias", False),
    }
    parts = {
        "ln1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "ln2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    }  # fmt: skip
    for i in range(LAYERS):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                transposed = kind == "weight" and "ln" not in ours
                name = f"transformer.h.{i}.{theirs}.{kind}"
                names[f"layers.{i}.{ours}.{kind}"] = (name, transposed)
    return names


def test_it_trains_as_transformers_gpt2_does():
    model, names = gpt2(), dense_names()
    theirs = dict(model.named_parameters())
    state = {
        ours: (theirs[name].T if transposed else theirs[name]).detach().clone()
        for ours, (name, transposed) in names.items()
    }
    tokens = torch.randint(VOCAB, (3, SEQ))
    targets = torch.randint(VOCAB, (3, SEQ))
    targets[0, :7] = -100
    batches = [(tokens, targets)] * 2
    steps = oracle.train(state, batches, num_layers=LAYERS, num_heads=HEADS, lr=1e-3)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in steps:
        optimizer.zero_grad()
        logits = model(tokens).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        close = {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(step.logits, logits.detach(), **close)
        torch.testing.assert_close(step.loss, loss.detach(), **close)
        for ours, (name, transposed) in names.items():
            gradient = theirs[name].grad
            wanted = gradient.T if transposed else gradient
            torch.testing.assert_close(step.gradients[ours], wanted, **close, msg=ours)
        norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.values()])
        torch.testing.assert_close(step.grad_norm, norm, **close)
        optimizer.step()
    for ours, (name, transposed) in names.items():
        wanted = theirs[name].detach()
        if ours.endswith("qkv.bias"):  # the key's part is rounding noise times AdamW
            continue
        wanted = wanted.T if transposed else wanted
        torch.testing.assert_close(steps[-1].parameters[ours], wanted, rtol=1e-6, atol=1e-8)


def test_it_imports_torch_and_the_standard_library_only():
    tree = ast.parse(inspect.getsource(oracle))
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert modules == {"__future__", "collections", "dataclasses", "torch"}


def test_it_leaves_the_state_it_was_given_alone():
    state = {
        "embedding.word.weight": torch.randn(5, 4),
        "embedding.position.weight": torch.randn(3, 4),
        "final_norm.weight": torch.ones(4),
        "final_norm.bias": torch.zeros(4),
    }
    before = {name: value.clone() for name, value in state.items()}
    tokens = torch.tensor([[0, 1, 2]])
    oracle.train(state, [(tokens, tokens)], num_layers=0, num_heads=1)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_dropout_scales_what_its_mask_keeps():
    kept = torch.tensor([True, False, True])
    found = oracle.dropout(torch.ones(3), "site", 0.25, {"site": kept})
    assert found.tolist() == pytest.approx([4 / 3, 0, 4 / 3])
