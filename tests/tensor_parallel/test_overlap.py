"""Messages under products: the same numbers, and on the ledger's clock the messages are hidden."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import minimegatron as mm
from minimegatron.experiments.slow_network import slow_network
from minimegatron.tensor_parallel import linear


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def draw(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"input_is_parallel": False}])
def test_a_row_layer_in_chunks_equals_the_dense_layer_with_its_gradients(tp, chunks, options):
    def check(mesh):
        torch.manual_seed(3)
        dense, x, grad = nn.Linear(8, 12, dtype=torch.float64), draw(2, 4, 8), draw(2, 4, 12)
        whole = x.clone().requires_grad_()
        y_dense = dense(whole)
        y_dense.backward(grad)
        layer = mm.RowParallelLinear.from_dense(dense, mesh.tp, chunks=chunks, **options)
        mine = (lambda t: t) if options else (lambda t: t.chunk(tp, -1)[mesh.tp.rank])
        part = mine(x).clone().requires_grad_()
        y = layer(part)
        y.backward(grad)
        close(y, y_dense)
        close(part.grad, mine(whole.grad))
        close(layer.weight.grad, dense.weight.grad.chunk(tp, 1)[mesh.tp.rank])
        close(layer.bias.grad, dense.bias.grad)

    mm.launch(check, tp=tp)


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_k_chunks_are_k_all_reduces_of_a_kth_of_the_bytes_and_none_backward(chunks):
    def run(mesh):
        layer = mm.RowParallelLinear(8, 12, mesh.tp, chunks=chunks)
        with mm.ledger() as log:
            layer(torch.randn(2, 4, 4, requires_grad=True)).sum().backward()
        return log

    log = mm.launch(run, tp=2)[0]
    assert [(r.op, r.phase, r.bytes) for r in log.records] == [
        ("all_reduce", "forward", 2 * 4 * 12 * 4 // chunks)
    ] * chunks
    assert [s.name for s in log.spans] == ["product"] * chunks * (chunks > 1)


class Chunked(mm.RowParallelLinear):
    """A row layer in two parts; Megatron's models would be told so in their configuration."""

    def __init__(self, *args, **options):
        super().__init__(*args, chunks=2, **options)


def test_a_gpt_whose_row_layers_go_in_chunks_equals_one_process():
    config = mm.GPTConfig(vocab_size=32, seq_length=8, hidden_size=16, num_layers=2, num_heads=4)
    report = mm.parity(config, tp=2, using={"RowParallelLinear": Chunked})
    assert report.ok, report
    # Two row layers in each of two layers: four all-reduces more than without.
    assert (
        report.ledger[0].count(phase="forward")
        == mm.parity(config, tp=2, steps=1).ledger[0].count(phase="forward") + 4
    )


@pytest.mark.parametrize("chunks", [0, -1])
def test_a_number_of_chunks_below_one_is_refused(chunks):
    with pytest.raises(ValueError, match=f"chunks={chunks}: 1 or more"):
        mm.RowParallelLinear(8, 12, mm.single().tp, chunks=chunks)


def test_chunks_that_do_not_divide_the_sequence_or_meet_sequence_parallelism_are_refused():
    axis = mm.single().tp
    with pytest.raises(ValueError, match="chunks=2: .*sequence_parallel"):
        mm.RowParallelLinear(8, 12, axis, chunks=2, sequence_parallel=True)
    with pytest.raises(ValueError, match="a sequence of 5 does not divide by chunks=2"):
        mm.RowParallelLinear(8, 12, axis, chunks=2)(torch.randn(2, 5, 8))


def test_a_learners_g_or_all_reduce_runs_once_where_the_paper_puts_it():
    def run(mesh):
        torch.manual_seed(0)
        layer = mm.RowParallelLinear(8, 12, mesh.tp, chunks=2)
        with mm.ledger() as log:
            y = layer(torch.ones(1, 4, 4))
        return y, log.count()

    wanted = mm.launch(run, tp=2)[0][0]
    for using in (
        {"g": lambda x, axis: mm.g(x, axis)},
        {"all_reduce": lambda x, axis: mm.all_reduce(x, axis)},
    ):
        y, count = mm.launch(run, tp=2, using=using)[0]
        assert count == 1 and torch.allclose(y, wanted)


def column_backward(mesh):
    """The ledger of a column layer's backward, while messages take a tenth of a second."""
    layer = mm.ColumnParallelLinear(512, 1024, mesh.tp)
    y = layer(torch.randn(8, 512, 512, requires_grad=True))
    with slow_network(lambda op, size, n: 0.1), mm.ledger() as log:
        y.sum().backward()
    return log


def row_forward(mesh, chunks):
    layer = mm.RowParallelLinear(2048, 512, mesh.tp, chunks=chunks)
    x = torch.randn(8, 512, 1024)
    with slow_network(lambda op, size, n: 0.2 / chunks), mm.ledger() as log:
        layer(x)
    return log


def test_the_input_gradient_travels_under_the_weight_gradient():
    for log in mm.launch(column_backward, tp=2):
        of_input, of_weight = log.spans
        assert (of_input.name, of_weight.name) == ("input gradient", "weight gradient")
        assert {s.phase for s in log.spans} == {"backward"}
        (message,) = log.records
        assert of_input.end <= message.posted <= of_weight.begin < of_weight.end <= message.waited
        assert log.hidden() > 0.02


def test_only_chunks_hide_the_forward_all_reduce():
    whole, chunked = mm.launch(row_forward, 1, tp=2)[0], mm.launch(row_forward, 4, tp=2)[0]
    assert whole.hidden() == 0.0
    assert chunked.hidden() > 0.02
    first, product = chunked.records[0], chunked.spans[1]
    assert first.posted <= product.begin < product.end <= first.waited


class AtOnce:
    """A handle whose collective was waited for as soon as it was started."""

    def __init__(self, handle):
        self.result = handle.wait()

    def wait(self):
        return self.result


@pytest.mark.parametrize("function", [column_backward, lambda mesh: row_forward(mesh, 4)])
def test_waiting_at_once_changes_no_number_and_only_the_times_tell(function):
    def run(mesh):
        original = linear.all_reduce
        linear.all_reduce = lambda *args, **options: AtOnce(original(*args, **options))
        try:
            return function(mesh)
        finally:
            linear.all_reduce = original

    right, wrong = mm.launch(function, tp=2)[0], mm.launch(run, tp=2)[0]
    assert repr(right) == repr(wrong)  # as many messages, of as many bytes
    assert wrong.hidden() < right.hidden() / 2
