"""Cheaper gradients: send less of them, and keep for the next step what was not sent.

A lossy message alone loses the same small numbers at every step, and training stalls or drifts.
*Error feedback* adds the residual, gradient minus what was sent, to the next gradient, so that
nothing is lost, only late: sent + residual = gradient (Seide et al. 2014, 1-bit SGD; Karimireddy et
al., arXiv:1901.09847). Four messages: the gradient cast to half precision; its k largest values
with their places (Lin et al., arXiv:1712.01887); one bit a value, its sign, with a scale for each
row; and PowerSGD, two thin matrices whose product is close to it (Vogels et al.,
arXiv:1905.13727). Megatron-LM sends all of the gradient, in fp32 or with
`--grad-reduce-in-bf16` in half of the bytes; torch has the hooks of `ddp_comm_hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad

from minimegatron.data_parallel.gradients import GradientBuckets, Model, views_of
from minimegatron.ranks.collectives import Handle, all_gather, all_reduce
from minimegatron.ranks.mesh import Axis

# Ends a message: what this rank sent, as a gradient, and the sum of what all ranks sent; both flat.
Finish = Callable[[], tuple[Tensor, Tensor]]
# Starts the message of a flat bucket, which holds the gradients of these parameters.
Start = Callable[[Tensor, Sequence[Parameter], Axis], Finish]


def compress_gradients(
    model: Model, method: str, *, k: float = 0.01, rank: int = 2, feedback: bool = True
) -> None:
    """From now on the model's gradients are compressed on their way over dp.

    Args:
        method: "none", "fp16", "bf16", "top-k", "1-bit" or "powersgd".
        k: for top-k: a share of each parameter (a float up to 1.0) or a number of values (an int).
        rank: for PowerSGD: the columns of both thin matrices. Vectors are sent as they are.
        feedback: whether what was not sent is added to the next gradient. It takes as much memory
            as the gradients, and is another on every rank of dp.

    Raises ValueError for another method and for a k or rank that means nothing. ZeRO has a reducer
    of its own: the first step raises RuntimeError.
    """
    most = max(p.numel() for p in model.parameters())
    if isinstance(k, bool) or not 0 < k <= (most if isinstance(k, int) else 1):
        raise ValueError(
            f"k={k!r}: a share above 0 and at most 1.0, or a whole number from 1 to {most}, the "
            "values of the largest parameter"
        )
    if type(rank) is not int or rank < 1:
        raise ValueError(f"rank={rank!r}: a thin matrix has a whole number of columns, at least 1")
    methods: dict[str, Start | None] = {
        "none": None,
        "fp16": partial(cast, torch.float16),
        "bf16": partial(cast, torch.bfloat16),
        "top-k": partial(largest, k),
        "1-bit": one_bit,
        "powersgd": partial(powersgd, rank, {}),
    }
    if method not in methods:
        raise ValueError(f"method={method!r}: gradients can be compressed by {', '.join(methods)}")
    start = methods[method]
    model.gradient_reducer = None if start is None else Compression(start, feedback)


class Compression:
    """A gradient reducer: adds the residual to a bucket, sends some of it, keeps the rest.

    `residual[p]` is what this rank has not sent of the gradient of `p`, in its share of the mean.
    """

    def __init__(self, start: Start, feedback: bool) -> None:
        self.start, self.feedback = start, feedback
        self.residual: dict[Parameter, Tensor] = {}

    def __call__(self, buckets: GradientBuckets, index: int) -> Handle:
        flat, group = buckets.buffers[index], buckets.groups[index]
        for p in group:
            if p in self.residual:
                buckets.views[p].add_(self.residual[p])
        finish = self.start(flat, group, buckets.axis)

        def take_in() -> Tensor:
            sent, total = finish()
            if self.feedback:
                self.residual |= views_of(group, flat - sent)
            return flat.copy_(total)

        return Handle(take_in)


def cast(dtype: torch.dtype, flat: Tensor, group: Sequence[Parameter], axis: Axis) -> Finish:
    """Half the bytes. The sum is made in half precision too; feedback knows the cast alone."""
    sent = flat.to(dtype)
    total = all_reduce(sent, axis, async_op=True)
    return lambda: (sent, total.wait())


def gathered(axis: Axis, *message: Tensor, decode: Callable[..., Tensor]) -> Finish:
    """Where messages cannot be added, every rank gets all of them and adds what they stand for."""
    handles = [all_gather(part, axis, async_op=True) for part in message]

    def finish() -> tuple[Tensor, Tensor]:
        messages = zip(*(handle.wait().chunk(axis.size) for handle in handles), strict=True)
        decoded = [decode(*each) for each in messages]  # in rank order: the same bits everywhere
        return decoded[axis.rank], torch.stack(decoded).sum(0)

    return finish


def largest(k: float, flat: Tensor, group: Sequence[Parameter], axis: Axis) -> Finish:
    """The k values of each parameter furthest from 0, and their places: each rank chooses its own.

    Of each parameter, not of a bucket: the tensor-parallel ranks hold other shards in their buckets
    and would choose other values of a layer norm that they must all update alike.
    """
    places = []
    for p, at in views_of(group, torch.arange(len(flat), device=flat.device)).items():
        count = min(k, p.numel()) if isinstance(k, int) else max(1, round(k * p.numel()))
        places.append(at.flatten()[flat[at].abs().flatten().topk(count).indices])
    chosen = torch.cat(places)

    def decode(values: Tensor, places: Tensor) -> Tensor:
        return torch.zeros_like(flat).index_copy_(0, places.long(), values)

    # A place in 4 bytes, as no bucket holds 2^31 numbers.
    return gathered(axis, flat[chosen], chosen.int(), decode=decode)


def one_bit(flat: Tensor, group: Sequence[Parameter], axis: Axis) -> Finish:
    """The sign of each value, eight to a byte, and the mean size of each row's values.

    One scale for a whole matrix does not serve: in an embedding few rows have most of the gradient.
    """
    gradients = views_of(group, flat).values()
    rows = [g.flatten(1) if g.ndim > 1 else g[None] for g in gradients]
    scales = torch.cat([row.abs().mean(1) for row in rows])
    bit = torch.arange(8, dtype=torch.uint8, device=flat.device)
    packed = (pad(flat >= 0, (0, -len(flat) % 8)).view(-1, 8) << bit).sum(1, dtype=torch.uint8)

    def decode(packed: Tensor, scales: Tensor) -> Tensor:
        signs = 2.0 * ((packed[:, None] >> bit) & 1).flatten()[: len(flat)] - 1
        parts = zip(rows, scales.split([len(row) for row in rows]), strict=True)
        return signs * _flat(scale[:, None].expand_as(row) for row, scale in parts)

    return gathered(axis, packed, scales, decode=decode)


def powersgd(
    rank: int, last: dict[Parameter, Tensor], flat: Tensor, group: Sequence[Parameter], axis: Axis
) -> Finish:
    """A matrix M (m, n) as P Q^T, P (m, rank) with orthonormal columns and Q (n, rank).

    One step of power iteration from the last step's Q: P = orthonormal(sum of M Q), then
    Q = sum of M^T P. Both are linear in M, so two small all-reduces make the P and Q of the sum.
    Q is made orthonormal, too: a direction that had no gradient for a while can come back.
    """
    gradients = [g.flatten(1) if g.ndim > 1 else g for g in views_of(group, flat).values()]
    first = list(gradients)  # of a vector, itself
    for i, (p, g) in enumerate(zip(group, gradients, strict=True)):
        if g.ndim > 1:
            start = torch.Generator().manual_seed(0)  # the same on every rank
            q = torch.randn(g.shape[1], min(rank, *g.shape), generator=start, device="cpu")
            first[i] = g @ orthonormal(last.get(p, q.to(g)))
    handle = all_reduce(_flat(first), axis, async_op=True)

    def finish() -> tuple[Tensor, Tensor]:
        summed = _like(first, handle.wait())
        ps = [orthonormal(p) if p.ndim > 1 else p for p in summed]
        mine = [g.T @ p if g.ndim > 1 else g[:0] for g, p in zip(gradients, ps, strict=True)]
        second = _flat(mine)
        qs = _like(mine, all_reduce(second, axis) if len(second) else second)
        last.update(zip(group, qs, strict=True))

        def whole(qs: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
            parts = zip(ps, qs, vectors, strict=True)
            return _flat(p @ q.T if p.ndim > 1 else vector for p, q, vector in parts)

        return whole(mine, gradients), whole(qs, summed)

    return finish


def orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of its columns (half precision has no QR of its own)."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return torch.linalg.qr(wide).Q.to(matrix.dtype)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _like(shapes: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    """`flat`, cut into tensors of these shapes."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape.shape) for part, shape in zip(parts, shapes, strict=True)]
