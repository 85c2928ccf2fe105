"""The terms against Korthikanti's closed formulas, and against the bytes that autograd keeps."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

import minimegatron as mm
from minimegatron.analysis.activations import activation_bytes, activation_terms, outside_terms

# The paper's 22B model (its table 3), as in 2022: explicit attention, dropout.
PAPER = mm.GPTConfig(
    vocab_size=51200, seq_length=2048, hidden_size=6144, num_layers=48, num_heads=64,
    dropout=0.1, attention="explicit",
)  # fmt: skip
SMALL = mm.GPTConfig(
    vocab_size=51, seq_length=16, hidden_size=32, num_layers=2, num_heads=4,
    dropout=0.1, attention="explicit",
)  # fmt: skip


def total(terms):
    return sum(term.bytes for term in terms)


# The closed formulas, as published (tables.json, korthikanti_2022_arxiv_2205_05198)


def published(s, b, h, a, t):
    x = 5 * a * s / h
    return {
        "none": s * b * h * (34 + x),
        "tp": s * b * h * (10 + 24 / t + x / t),
        "tp_sp": s * b * h / t * (34 + x),
        "tp_selective": s * b * h * (10 + 24 / t),
        "tp_sp_selective": 34 * s * b * h / t,
        "full": 2 * s * b * h,
    }


STRATEGIES = {
    "none": {},
    "tp": {},
    "tp_sp": {"sequence_parallel": True},
    "tp_selective": {"recompute": "selective"},
    "tp_sp_selective": {"sequence_parallel": True, "recompute": "selective"},
    "full": {"recompute": "full"},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("config", "b", "t"), [(PAPER, 4, 8), (SMALL, 3, 2)])
def test_the_terms_add_up_to_the_published_formula(strategy, config, b, t):
    t = 1 if strategy == "none" else t
    wanted = published(config.seq_length, b, config.hidden_size, config.num_heads, t)[strategy]
    terms = activation_terms(dataclasses.replace(config, **STRATEGIES[strategy]), b, t)
    assert total(terms) == pytest.approx(wanted, rel=1e-12)


def test_attention_mlp_and_layer_norms_have_the_published_parts():
    s, b, h, a = 2048, 4, 6144, 64
    terms = activation_terms(PAPER, b)
    mlp = [t for t in terms if t.place.startswith("mlp") or "MLP" in t.what]
    norms = [t for t in terms if t.place.startswith("ln")]
    attention = [t for t in terms if t not in mlp and t not in norms]
    assert total(attention) == 11 * s * b * h + 5 * a * s * s * b
    assert total(mlp) == 19 * s * b * h
    assert total(norms) == 4 * s * b * h


@pytest.mark.parametrize("t", [1, 8])
def test_embedding_head_and_loss_add_what_is_published(t):
    config = dataclasses.replace(PAPER, sequence_parallel=True)
    s, b, h, v, layers, p = 2048, 4, 6144, 51200, 48, 1
    extra = s * b * h * layers / t * (p / layers + 4 / layers * (1 + v / h))
    assert total(outside_terms(config, b, t)) == pytest.approx(extra, rel=1e-12)
    whole = layers * total(activation_terms(config, b, t)) + extra
    assert activation_bytes(config, b, t) == pytest.approx(whole, rel=1e-12)


# What autograd keeps


def small_ones(config, b, tp, element):
    """Bytes without h in them, which the formula leaves out, by module."""
    tokens = config.seq_length * b
    rows = tokens // tp if config.sequence_parallel else tokens
    norm = 2 * rows * element  # mean and deviation
    causal = config.seq_length**2 if config.attention == "explicit" and not config.recompute else 0
    layer = {} if config.recompute == "full" else {"ln1": norm, "ln2": norm, "attention": causal}
    # token numbers (and whose they are), the loss' scales and how many there are
    return layer, norm * (config.layer_norm == "pre") + (8 + (tp > 1) + 4) * tokens + 8


def measure(mesh, config, b, dtype):
    torch.set_default_dtype(dtype)
    model = mm.GPT(config, mesh)
    tokens = torch.randint(config.vocab_size, (b, config.seq_length))
    with mm.saved_tensors(model) as saved:
        loss = model.loss(tokens, tokens)
    del loss
    return saved


VARIANTS = [
    {},
    {"sequence_parallel": True},
    {"sequence_parallel": True, "keep_gathered": True},
    {"recompute": "selective"},
    {"recompute": "selective", "sequence_parallel": True},
    {"recompute": "full"},
    {"recompute": "full", "sequence_parallel": True},
    {"dropout": 0.0},
    {"dropout": 0.0, "attention": "sdpa"},
    {"dropout": 0.0, "attention": "sdpa", "sequence_parallel": True},
    {"dropout": 0.0, "attention": "sdpa", "recompute": "selective"},
    {"layer_norm": "post", "tie_embeddings": False},
]


def module_of(place, config):
    """The kernel keeps its result, which the projection then keeps as its input: one tensor."""
    return "attention" if place == "attention.out" and config.attention == "sdpa" else place


@pytest.mark.parametrize("change", VARIANTS, ids=str)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_term_is_what_autograd_keeps(change, tp):
    config, b = dataclasses.replace(SMALL, **change), 3
    for dtype in (torch.bfloat16, torch.float32):
        saved = mm.launch(measure, config, b, dtype, tp=tp)[0]
        element = dtype.itemsize
        small, small_outside = small_ones(config, b, tp, element)
        terms = activation_terms(config, b, tp, element)
        for layer in ("layers.0", "layers.1") if config.recompute != "full" else ():
            found, wanted = Counter(small), Counter()
            for term in terms:
                found[module_of(term.place, config)] += term.bytes
            for r in saved.records:
                if f"{r.place}.".startswith(f"{layer}."):
                    wanted[module_of(r.place[len(layer) + 1 :], config)] += r.bytes
            assert found == wanted
        layers = config.num_layers * (total(terms) + sum(small.values()))
        outside = total(outside_terms(config, b, tp, element)) + small_outside
        assert saved.bytes() == max(saved.held) == layers + outside
        assert saved.held[-1] == 0  # the graph is gone
        assert saved.bytes() - activation_bytes(config, b, tp, element) < 0.12 * saved.bytes()


def test_inside_attention_each_tensor_is_a_term():
    saved = mm.launch(measure, SMALL, 3, torch.bfloat16, tp=2)[0]
    found = Counter(r.bytes for r in saved.records if r.place == "layers.0.attention")
    wanted = [t.bytes for t in activation_terms(SMALL, 3, 2) if t.place == "attention"]
    assert found == Counter([*wanted, SMALL.seq_length**2])


def test_a_fused_kernel_and_no_dropout_make_the_scores_vanish():
    modern = dataclasses.replace(PAPER, dropout=0.0, attention="sdpa")
    then, now = total(activation_terms(PAPER, 4)), total(activation_terms(modern, 4))
    s, b, h, a = 2048, 4, 6144, 64
    assert now == 32 * s * b * h + 4 * a * s * b
    assert now < 0.3 * then
    selective = dataclasses.replace(modern, recompute="selective")
    assert total(activation_terms(selective, 4)) > 0.99 * now  # nothing much left to recompute


def test_a_formula_reads_as_the_paper_writes_it():
    formulas = [t.formula for t in activation_terms(PAPER, 4, 8)]
    assert formulas[:7] == ["2sbh", "2sbh", "2sbh/t", "2sbh/t", "2sbh/t", "2as²b/t", "as²b/t"]
    split = dataclasses.replace(PAPER, sequence_parallel=True)
    assert all(t.formula.endswith("/t") for t in activation_terms(split, 4, 8))
