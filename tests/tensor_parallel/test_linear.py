"""Column- and row-parallel layers against the torch.nn.Linear that they are parts of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import minimegatron as mm
from minimegatron.tensor_parallel import linear


def dense_linear(n_in=8, n_out=12, bias=True):
    torch.manual_seed(3)
    return nn.Linear(n_in, n_out, bias, dtype=torch.float64)


def batch(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def run_dense(dense, x, grad):
    x = x.clone().requires_grad_()
    y = dense(x)
    y.backward(grad)
    return y.detach(), x.grad


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gather_output", [True, False])
def test_column_layer_equals_the_dense_layer(tp, bias, gather_output):
    def check(mesh):
        dense, x, grad = dense_linear(bias=bias), batch(2, 3, 8), batch(2, 3, 12, seed=6)
        y_dense, x_grad = run_dense(dense, x, grad)
        layer = mm.ColumnParallelLinear.from_dense(dense, mesh.tp, gather_output=gather_output)
        x.requires_grad_()
        y = layer(x)
        rank = mesh.tp.rank
        y.backward(grad if gather_output else grad.chunk(tp, -1)[rank])
        close(y.detach(), y_dense if gather_output else y_dense.chunk(tp, -1)[rank])
        close(x.grad, x_grad)
        close(layer.weight.grad, dense.weight.grad.chunk(tp)[rank])
        if bias:
            close(layer.bias.grad, dense.bias.grad.chunk(tp)[rank])
        else:
            assert layer.bias is None

    mm.launch(check, tp=tp)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input_is_parallel", [True, False])
def test_row_layer_equals_the_dense_layer(tp, bias, input_is_parallel):
    def check(mesh):
        dense, x, grad = dense_linear(bias=bias), batch(2, 3, 8), batch(2, 3, 12, seed=6)
        y_dense, x_grad = run_dense(dense, x, grad)
        layer = mm.RowParallelLinear.from_dense(dense, mesh.tp, input_is_parallel=input_is_parallel)
        rank = mesh.tp.rank
        part = x.chunk(tp, -1)[rank].clone() if input_is_parallel else x
        part.requires_grad_()
        y = layer(part)
        y.backward(grad)
        close(y.detach(), y_dense)
        close(part.grad, x_grad.chunk(tp, -1)[rank] if input_is_parallel else x_grad)
        close(layer.weight.grad, dense.weight.grad.chunk(tp, 1)[rank])
        if bias:
            close(layer.bias.grad, dense.bias.grad)

    mm.launch(check, tp=tp)


@pytest.mark.parametrize("tp", [1, 2])
def test_sequence_parallel_layers_equal_the_dense_pair(tp):
    def check(mesh):
        up, down = dense_linear(8, 12), dense_linear(12, 8)
        x, grad, rank = batch(2, 4, 8), batch(2, 4, 8, seed=6), mesh.tp.rank
        y_dense, x_grad = run_dense(nn.Sequential(up, nn.Tanh(), down), x, grad)
        column = mm.ColumnParallelLinear.from_dense(up, mesh.tp, sequence_parallel=True)
        row = mm.RowParallelLinear.from_dense(down, mesh.tp, sequence_parallel=True)
        part = x.chunk(tp, 1)[rank].clone().requires_grad_()
        y = row(column(part).tanh())
        y.backward(grad.chunk(tp, 1)[rank])
        close(y.detach(), y_dense.chunk(tp, 1)[rank])
        close(part.grad, x_grad.chunk(tp, 1)[rank])
        close(column.weight.grad, up.weight.grad.chunk(tp)[rank])
        close(row.weight.grad, down.weight.grad.chunk(tp, 1)[rank])
        # Each rank has seen its own tokens only: the bias' gradient is a partial sum.
        close(mm.all_reduce(row.bias.grad, mesh.tp), down.bias.grad)

    mm.launch(check, tp=tp)


@pytest.mark.parametrize("name", ["ColumnParallelLinear", "RowParallelLinear"])
def test_a_constructor_draws_the_dense_layer_and_keeps_its_part(name):
    def check(mesh):
        torch.manual_seed(0)
        dense = nn.Linear(8, 12)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        layer = getattr(mm, name)(8, 12, mesh.tp)
        assert torch.equal(torch.get_rng_state(), after)
        dim = 0 if name.startswith("Column") else 1
        assert torch.equal(mm.all_gather(layer.weight.detach(), mesh.tp, dim), dense.weight)
        bias = mm.all_gather(layer.bias.detach(), mesh.tp) if dim == 0 else layer.bias
        assert torch.equal(bias, dense.bias)

    mm.launch(check, tp=4)


def test_from_dense_draws_nothing_shares_no_memory_and_keeps_dtype_and_frozen_parameters():
    def check(mesh):
        dense = dense_linear()
        dense.weight.requires_grad_(False)
        for kind in (mm.ColumnParallelLinear, mm.RowParallelLinear):
            before = torch.get_rng_state()
            layer = kind.from_dense(dense, mesh.tp)
            assert torch.equal(torch.get_rng_state(), before)
            assert layer.weight.dtype == torch.float64 and layer.weight.device.type == "cpu"
            assert not layer.weight.requires_grad and layer.bias.requires_grad
            value = dense.weight.clone()
            layer.weight.zero_()
            assert torch.equal(dense.weight, value)

    mm.launch(check, tp=2)


def test_blocks_split_a_fused_product_block_by_block():
    def check(mesh):
        dense = dense_linear(4, 24)
        layer = mm.ColumnParallelLinear.from_dense(dense, mesh.tp, blocks=3)
        for got, whole in ((layer.weight, dense.weight), (layer.bias, dense.bias)):
            parts = [block.chunk(2)[mesh.tp.rank] for block in whole.chunk(3)]
            assert torch.equal(got, torch.cat(parts))
        with pytest.raises(ValueError, match="24.*5"):
            mm.ColumnParallelLinear.from_dense(dense, mesh.tp, blocks=5)

    mm.launch(check, tp=2)


def test_sizes_that_do_not_divide_are_errors_that_name_both_numbers():
    def check(mesh):
        with pytest.raises(ValueError, match="10.*tp=4"):
            mm.ColumnParallelLinear(8, 10, mesh.tp)
        with pytest.raises(ValueError, match="10.*tp=4"):
            mm.RowParallelLinear(10, 8, mesh.tp)
        with pytest.raises(ValueError, match="10.*tp=4"):
            mm.RowParallelLinear.from_dense(nn.Linear(10, 8), mesh.tp)

    mm.launch(check, tp=4)


def test_an_input_of_another_width_is_an_error_that_names_both_sizes_and_the_cure():
    def check(mesh):
        with pytest.raises(ValueError, match="is 6, and should be 8$"):
            mm.ColumnParallelLinear(8, 12, mesh.tp)(batch(3, 6))
        with pytest.raises(ValueError, match="is 8, and should be 2, .*input_is_parallel=False"):
            mm.RowParallelLinear(8, 12, mesh.tp)(batch(3, 8))  # X whole, as it was not cut
        with pytest.raises(ValueError, match="is 2, and should be 8$"):
            mm.RowParallelLinear(8, 12, mesh.tp, input_is_parallel=False)(batch(3, 2))

    mm.launch(check, tp=4)


class Steps(TorchDispatchMode):
    """Writes down each matrix product, between the collective's start and its end."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self.seen.append("product")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_input_gradient_is_reduced_under_the_weight_gradient(sequence_parallel):
    name = "reduce_scatter" if sequence_parallel else "all_reduce"

    def check(mesh):
        steps, original = Steps(), getattr(linear, name)

        class Watched:
            def __init__(self, handle):
                self.handle = handle

            def wait(self):
                steps.seen.append("end")
                return self.handle.wait()

        def watched(*args, **options):
            steps.seen.append("start")
            return Watched(original(*args, **options))

        layer = mm.ColumnParallelLinear(4, 8, mesh.tp, sequence_parallel=sequence_parallel)
        y = layer(torch.randn(1, 2, 4, requires_grad=True))
        setattr(linear, name, watched)
        try:
            with steps:
                y.sum().backward()
        finally:
            setattr(linear, name, original)
        assert steps.seen == ["product", "start", "product", "end"]

    mm.launch(check, tp=2)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_overlapped_product_equals_the_operators_one_after_another(sequence_parallel):
    def check(mesh):
        layer = mm.ColumnParallelLinear(4, 8, mesh.tp, sequence_parallel=sequence_parallel)
        x = torch.randn(2, 2, 4, requires_grad=True)
        y = layer(x)
        y.square().sum().backward()
        return y, x.grad, layer.weight.grad, layer.bias.grad

    using = {  # wrapped, they count as the learner's own
        "f": lambda x, axis: mm.f(x, axis),
        "sequence_all_gather": lambda x, axis, dim=1: mm.sequence_all_gather(x, axis, dim),
    }
    fused, plain = mm.launch(check, tp=2), mm.launch(check, tp=2, using=using)
    torch.testing.assert_close(fused, plain)
    if not sequence_parallel:  # a learner's collective knows no options
        using = {"all_reduce": lambda x, axis: mm.all_reduce(x, axis)}
        torch.testing.assert_close(mm.launch(check, tp=2, using=using), fused)


def test_a_column_layer_takes_non_contiguous_inputs_and_gradients():
    def check(mesh):
        dense = dense_linear(8, 12)
        x, grad = batch(3, 2, 8).transpose(0, 1), batch(12, 3, 2, seed=6).permute(2, 1, 0)
        _, x_grad = run_dense(dense, x, grad)
        layer = mm.ColumnParallelLinear.from_dense(dense, mesh.tp)
        x = x.clone().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        layer(x).backward(grad.chunk(2, -1)[mesh.tp.rank])
        assert not x.is_contiguous()
        close(x.grad, x_grad)
        close(layer.weight.grad, dense.weight.grad.chunk(2)[mesh.tp.rank])

    mm.launch(check, tp=2)


def test_an_input_that_needs_no_gradient_costs_no_communication():
    def check(mesh):
        with mm.ledger() as log:
            mm.ColumnParallelLinear(4, 8, mesh.tp)(torch.randn(2, 3, 4)).sum().backward()
        assert not log.records

    mm.launch(check, tp=2)


def test_layers_run_under_autocast():
    def check(mesh):
        column = mm.ColumnParallelLinear(4, 8, mesh.tp)
        row = mm.RowParallelLinear(8, 4, mesh.tp)
        x = torch.randn(2, 3, 4, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = row(column(x))
        y.float().sum().backward()
        assert x.grad.dtype == column.weight.grad.dtype == row.weight.grad.dtype == torch.float32

    mm.launch(check, tp=2)


def check_mlp(mesh):
    """A column layer feeding a row layer against the dense pair: output and every gradient."""
    up, down = dense_linear(8, 12), dense_linear(12, 8)
    x, grad, tp = batch(2, 3, 8), batch(2, 3, 8, seed=6), mesh.tp
    y_dense, x_grad = run_dense(nn.Sequential(up, nn.GELU(), down), x, grad)
    column = mm.ColumnParallelLinear.from_dense(up, tp)
    row = mm.RowParallelLinear.from_dense(down, tp)
    x.requires_grad_()
    y = row(nn.functional.gelu(column(x)))
    y.backward(grad)
    close(y.detach(), y_dense)
    close(x.grad, x_grad)
    close(column.weight.grad, up.weight.grad.chunk(tp.size)[tp.rank])
    close(column.bias.grad, up.bias.grad.chunk(tp.size)[tp.rank])
    close(row.weight.grad, down.weight.grad.chunk(tp.size, 1)[tp.rank])
    close(row.bias.grad, down.bias.grad)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_column_and_a_row_layer_make_the_dense_mlp(tp):
    mm.launch(check_mlp, tp=tp)


class BiasOnEveryRank(mm.RowParallelLinear):
    def forward(self, x):
        return mm.g(nn.functional.linear(x, self.weight, self.bias), self.axis)


class BiasDividedByTheRanks(mm.RowParallelLinear):
    def forward(self, x):
        bias = self.bias / self.axis.size
        return mm.g(nn.functional.linear(x, self.weight, bias), self.axis)


class NoF(mm.ColumnParallelLinear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class ReducedTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return mm.all_reduce(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return mm.all_reduce(grad, ctx.axis), None


# Numbers of pitfalls.md, A.
BUGS = {
    "1: bias on every rank": {"RowParallelLinear": BiasOnEveryRank},
    "2: bias divided by tp": {"RowParallelLinear": BiasDividedByTheRanks},
    "3: f is the identity": {"f": lambda x, axis: x},
    "3: the layer lacks f": {"ColumnParallelLinear": NoF},
    "4: g reduces again backward": {"g": lambda x, axis: ReducedTwice.apply(x, axis)},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug):
    with pytest.raises(mm.RankError, match="AssertionError"):
        mm.launch(check_mlp, tp=2, using=BUGS[bug])
