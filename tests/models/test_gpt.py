"""GPT on ranks against the same GPT out of torch's own layers, and what it sends."""

from __future__ import annotations

import math

import pytest
import torch
from dense_gpt import dense_run
from torch.nn import functional as F

import minimegatron as mm
from minimegatron.models import sharding

SMALL = {"vocab_size": 51, "seq_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 4}


def noisy_state(config):
    """Initial weights with noise on all: biases of zero and norms of one would hide mistakes."""
    generator = torch.Generator().manual_seed(2)
    state = mm.GPT(config).full_state_dict()
    return {
        name: value.double() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }


def batch(config):
    """Every token occurs: one at a shard's border shows bugs that no other does."""
    generator = torch.Generator().manual_seed(4)
    each = torch.arange(70) % config.vocab_size
    tokens, targets = (each[torch.randperm(70, generator=generator)].view(7, 10) for _ in range(2))
    targets[0, :7] = -100
    return tokens, targets


def run(mesh, config, state, tokens, targets):
    """Logits (whole, without padding), loss and dense gradients of the model on the mesh."""
    torch.set_default_dtype(torch.float64)
    model = mm.GPT(config, mesh)
    model.load_full_state_dict(state)
    logits = mm.all_gather(model(tokens).detach(), mesh.tp, -1)[..., : config.vocab_size]
    loss = model.loss(tokens, targets)
    loss.backward()
    return logits, loss.detach(), model.full_gradients()


def assert_equal_to_dense(config, tp, using=None):
    """The check: logits, loss and every gradient of the split model equal the dense one's."""
    state, (tokens, targets) = noisy_state(config), batch(config)
    logits, loss, gradients = dense_run(config, state, tokens, targets)
    for got in mm.launch(run, config, state, tokens, targets, tp=tp, using=using):
        torch.testing.assert_close(got[0], logits, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got[1], loss, rtol=1e-10, atol=1e-10)
        assert list(got[2]) == list(gradients)
        torch.testing.assert_close(got[2], gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("layer_norm", ["pre", "post"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_logits_loss_and_every_gradient_equal_the_dense_model(tp, layer_norm, tie, attention):
    config = mm.GPTConfig(**SMALL, layer_norm=layer_norm, tie_embeddings=tie, attention=attention)
    assert_equal_to_dense(config, tp)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("tie", [True, False])
def test_the_whole_model_sends_what_the_paper_says(tp, tie):
    config = mm.GPTConfig(**SMALL, tie_embeddings=tie)
    tokens, targets = batch(config)
    layers, per_token = config.num_layers, tokens.numel() * 4
    hidden = per_token * config.hidden_size

    def check(mesh):
        model = mm.GPT(config, mesh)
        with mm.ledger() as log:
            model.loss(tokens, targets).backward()
        assert {(r.op, r.axis) for r in log.records} == {("all_reduce", "tp")}
        assert log.count("all_reduce", "tp", "forward") == 2 * layers + 1 + 3
        assert log.count("all_reduce", "tp", "backward") == 2 * layers + 1
        assert log.bytes(phase="forward") == (2 * layers + 1) * hidden + 3 * per_token
        assert log.bytes(phase="backward") == (2 * layers + 1) * hidden
        assert log.wire_bytes() == 2 * (tp - 1) / tp * log.bytes()

    mm.launch(check, tp=tp)


def test_one_process_sends_nothing():
    config = mm.GPTConfig(**SMALL)
    model = mm.GPT(config)
    with mm.ledger() as log:
        model.loss(*batch(config)).backward()
        model.full_state_dict()
        mm.generate(model, torch.zeros(1, 1, dtype=torch.long), 2)
    assert not log.records


@pytest.mark.parametrize("layer_norm", ["pre", "post"])
@pytest.mark.parametrize("tie", [True, False])
def test_names_and_shapes_of_the_dense_state_are_the_same_at_every_split(layer_norm, tie):
    config = mm.GPTConfig(**SMALL, layer_norm=layer_norm, tie_embeddings=tie)
    shapes = [
        {name: tuple(value.shape) for name, value in state.items()}
        for tp in (1, 2, 4)
        for state in mm.launch(lambda mesh: mm.GPT(config, mesh).full_state_dict(), tp=tp)
    ]
    assert all(shape == shapes[0] and list(shape) == list(shapes[0]) for shape in shapes)
    assert shapes[0]["embedding.word.weight"] == (51, 16)
    assert shapes[0]["layers.1.attention.qkv.weight"] == (48, 16)
    assert ("head.weight" in shapes[0]) == (not tie)
    assert ("final_norm.weight" in shapes[0]) == (layer_norm == "pre")


def test_a_dense_state_comes_back_as_it_was_loaded_and_shares_no_memory():
    config = mm.GPTConfig(**SMALL, tie_embeddings=False)
    state = {name: value.float() for name, value in noisy_state(config).items()}

    def check(mesh):
        model = mm.GPT(config, mesh)
        model.load_full_state_dict(state)
        for name, value in model.full_state_dict().items():
            assert torch.equal(value, state[name]), name
            value.zero_()
        assert all(torch.equal(v, state[name]) for name, v in model.full_state_dict().items())
        # 51 words on 4 ranks: the last rank's last row is padding
        padding = model.embedding.word.weight[-1], model.head.weight[-1]
        assert mesh.tp.rank < 3 or not any(row.any() for row in padding)

    mm.launch(check, tp=4)


def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing():
    model = mm.GPT(mm.GPTConfig(**SMALL))
    before = model.full_state_dict()
    state = {name: torch.zeros_like(value) for name, value in before.items()}
    for change, message in (
        ({"head.weight": torch.zeros(51, 16)}, r"unexpected \['head.weight'\]"),
        ({"final_norm.bias": torch.zeros(15)}, r"final_norm.bias .*\(15,\).*\(16,\)"),
        ({"embedding.word.weight": torch.zeros(52, 16)}, r"\(52, 16\).*\(51, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_full_state_dict(state | change)
    del state["layers.0.ln1.bias"]
    with pytest.raises(ValueError, match=r"lacks \['layers.0.ln1.bias'\]"):
        model.load_full_state_dict(state)
    assert all(torch.equal(v, before[name]) for name, v in model.full_state_dict().items())


def test_gradients_that_are_not_there_count_as_zero_and_gathers_are_no_forward_traffic():
    config = mm.GPTConfig(**SMALL)

    def check(mesh):
        model = mm.GPT(config, mesh)
        with mm.ledger() as log:
            assert not any(value.any() for value in model.full_gradients().values())
        assert {r.phase for r in log.records} == {"other"}

    mm.launch(check, tp=2)


def test_the_table_names_exactly_the_parameters_that_differ_between_ranks():
    config = mm.GPTConfig(**SMALL, tie_embeddings=False)
    state = noisy_state(config)

    def parameters(mesh):
        model = mm.GPT(config, mesh)
        model.load_full_state_dict(state)
        return {name: (p.detach(), model.is_sharded(name)) for name, p in model.named_parameters()}

    first, second = mm.launch(parameters, tp=2)
    for name, (value, sharded) in first.items():
        assert sharded != torch.equal(value, second[name][0]), name


def test_the_loss_is_the_mean_over_real_targets_and_counts_them_while_gradients_are_on():
    config = mm.GPTConfig(**SMALL)
    model, (tokens, targets) = mm.GPT(config), batch(config)
    model.loss(tokens, targets)
    model.loss(tokens, targets)
    assert int(model.tokens_since_finish) == 2 * 63
    with torch.no_grad():
        model.loss(tokens, targets)
    assert int(model.tokens_since_finish) == 2 * 63
    nothing = model.loss(tokens, torch.full_like(tokens, -100))
    nothing.backward()
    assert nothing.item() == 0.0
    assert not any(p.grad.any() for p in model.parameters())


def test_a_fresh_model_knows_nothing():
    config = mm.GPTConfig(**SMALL)
    tokens, targets = batch(config)
    assert abs(mm.GPT(config).loss(tokens, targets).item() - math.log(config.vocab_size)) < 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_is_the_models(dtype):
    def check(mesh):
        torch.manual_seed(0)
        reference = mm.GPT(mm.GPTConfig(**SMALL), mesh).full_state_dict()
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)
        config = mm.GPTConfig(**SMALL)
        model = mm.GPT(config, mesh)
        assert {p.dtype for p in model.parameters()} == {dtype}
        # drawn in float32, then cast: the same numbers
        for name, value in model.full_state_dict().items():
            assert torch.equal(value, reference[name].to(dtype)), name
        loss = model.loss(*batch(config))
        loss.backward()
        assert loss.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)

    mm.launch(check, tp=2)


def test_wrong_input_is_an_error_that_names_the_numbers():
    model = mm.GPT(mm.GPTConfig(**SMALL))
    with pytest.raises(ValueError, match="13 tokens .* 12"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        model(torch.zeros(5, dtype=torch.long))
    with pytest.raises(IndexError, match="51"):
        model(torch.full((1, 3), 51))


def test_a_stage_holds_its_layers_only():
    def names(mesh):
        return [name for name, _ in mm.GPT(mm.GPTConfig(**SMALL), mesh).named_parameters()]

    first, last = mm.launch(names, pp=2)
    whole = mm.launch(names)[0]
    assert not set(first) & set(last) and set(first) | set(last) == {*whole, "head.weight"}
    assert "embedding.word.weight" in first and "final_norm.bias" in last


def test_heads_that_do_not_divide_are_an_error():
    config = mm.GPTConfig(51, 12, hidden_size=18, num_layers=1, num_heads=3)

    def check(mesh):
        with pytest.raises(ValueError, match="num_heads 3 .* tp=2"):
            mm.GPT(config, mesh)

    mm.launch(check, tp=2)


class BiasOnEveryRank(mm.RowParallelLinear):
    def forward(self, x):
        return mm.g(F.linear(x, self.weight, self.bias), self.axis)


class BiasDividedByTheRanks(mm.RowParallelLinear):
    def forward(self, x):
        return mm.g(F.linear(x, self.weight, self.bias / self.axis.size), self.axis)


class LastRowMissing(mm.VocabParallelEmbedding):
    def forward(self, tokens):
        local = tokens - self.first
        elsewhere = (local < 0) | (local >= len(self.weight) - 1)
        vectors = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return mm.g(vectors.masked_fill(elsewhere[..., None], 0.0), self.axis)


def padding_takes_part(logits, targets, axis, vocab_size=None, ignore_index=-100):
    return mm.vocab_parallel_cross_entropy(logits, targets, axis, None, ignore_index)


# Numbers of pitfalls.md, A.
BUGS = {
    "1: bias on every rank": {"RowParallelLinear": BiasOnEveryRank},
    "2: bias divided by tp": {"RowParallelLinear": BiasDividedByTheRanks},
    "3: no f": {"f": lambda x, axis: x},
    "4: g reduces again backward": {"g": lambda x, axis: mm.f(mm.g(x, axis), axis)},
    "7: border off by one": {"VocabParallelEmbedding": LastRowMissing},
    "8: padding in the softmax": {"vocab_parallel_cross_entropy": padding_takes_part},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught_in_the_whole_model(bug):
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_to_dense(mm.GPTConfig(**SMALL), 2, using=BUGS[bug])


def test_bug_6_a_fused_qkv_split_as_one_block_is_caught():
    config = mm.GPTConfig(**SMALL)
    state, (tokens, targets) = noisy_state(config), batch(config)
    logits, *_ = dense_run(config, state, tokens, targets)

    def split_as_one_block(mesh):
        right = dict(sharding.SPLITS)
        sharding.SPLITS |= {f"qkv.{name}": sharding.Split(0) for name in ("weight", "bias")}
        try:
            return run(mesh, config, state, tokens, targets)[0]
        finally:
            sharding.SPLITS |= right

    torch.testing.assert_close(mm.launch(split_as_one_block, tp=1)[0], logits)  # hides at tp=1
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(mm.launch(split_as_one_block, tp=2)[0], logits)
