"""Data parallelism: every rank has other sequences, so gradients are averaged over dp.

Two ideas make this cheap. Gradients live side by side in a few flat *buckets*, so that a handful
of large all-reduces replaces one per parameter; and a bucket is reduced as soon as backward has
filled it, while backward goes on with the layers before ("PyTorch Distributed", arXiv:2006.15704,
section 3). With micro-batches only the last one sends. Megatron-LM: `DistributedDataParallel`,
`_ParamAndGradBuffer`, `finalize_model_grads`.

The mean is over *tokens*, not over ranks: a rank with more real targets weighs more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from minimegatron.data_parallel.pieces import pieces
from minimegatron.ranks.collectives import Handle, Message, all_reduce, exchange
from minimegatron.ranks.ledger import phase
from minimegatron.ranks.mesh import Axis, Mesh
from minimegatron.ranks.using import replaced

# Bytes of a bucket. Large enough that its time is bandwidth, not latency (on CPU gloo's ring pays
# off from about 1 MB on, see ranks/collectives.py), small enough that a model of some tens of MB
# fills several and most of them travel under backward. With NCCL over many nodes 25 MB is usual.
BUCKET_BYTES = 4 << 20


# Starts the sum over dp of the bucket of this index, already weighted by this rank's share of the
# tokens; the handle ends with the sum in the bucket.
Reducer = Callable[["GradientBuckets", int], Handle]


class Model(Protocol):
    """What this file needs of a model (a GPT): it stands below models/ and imports none."""

    mesh: Mesh
    gradient_reducer: Reducer | None  # stands in for the all-reduce of a bucket
    tokens_since_finish: int | Tensor  # real targets that `loss` has seen since finish_gradients

    def parameters(self) -> Iterator[Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...
    def is_partial(self, name: str) -> bool: ...
    def tied_copy(self) -> Parameter | None: ...
    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor: ...


def gradient_weight(tokens: int | Tensor, axis: Axis, device: torch.device) -> Tensor:
    """This rank's share of the tokens of all ranks along the axis: a scalar, 1/size if none counts.

    A rank's gradient is a mean over its own `tokens`; weighted by its share, the sum over ranks is
    the mean over all tokens.
    """
    mine = torch.as_tensor(tokens, dtype=torch.float64, device=device)
    total = all_reduce(mine, axis)
    return torch.where(total > 0, mine / total.clamp(min=1), 1 / axis.size)


def _kind(p: Parameter) -> tuple[torch.dtype, torch.device, torch.dtype]:
    """The gradient's dtype and device, then the parameter's own dtype, which may be narrower."""
    return p.grad_dtype or p.dtype, p.device, p.dtype


def free(flat: Tensor) -> None:
    """Takes a flat buffer's memory from it and from its views; they keep their shapes."""
    flat.untyped_storage().resize_(0)


def make_room(flat: Tensor) -> bool:
    """Gives a freed buffer memory again, with arbitrary values; whether it had none."""
    freed = flat.untyped_storage().size() == 0
    if freed:
        flat.untyped_storage().resize_(flat.numel() * flat.itemsize)
    return freed


def in_buckets(parameters: Sequence[Parameter], bucket_bytes: int) -> list[list[Parameter]]:
    """The parameters from last to first, cut into groups of one kind and at most so many bytes."""
    groups: list[list[Parameter]] = []
    size = bucket_bytes  # "full": the first parameter opens a bucket
    for p in reversed(parameters):
        bytes_of_p = p.numel() * _kind(p)[0].itemsize
        full = size > 0 and size + bytes_of_p > bucket_bytes
        if not groups or full or _kind(p) != _kind(groups[-1][0]):
            groups.append([])
            size = 0
        groups[-1].append(p)
        size += bytes_of_p
    return groups


def views_of(group: Sequence[Parameter], flat: Tensor) -> dict[Parameter, Tensor]:
    """The part of a flat buffer that belongs to each parameter of the group, in its shape."""
    sizes = [p.numel() for p in group]
    parts = flat[: sum(sizes)].split(sizes)
    return {p: part.view(p.shape) for p, part in zip(group, parts, strict=True)}


class GradientBuckets:
    """All gradients of a model in flat contiguous buffers; each `.grad` is a view into one.

    Buckets follow the parameters backwards, because backward makes the last layer's gradients
    first. They are reduced strictly in order, so that all ranks send the same sequence whatever
    happens to be ready. A parameter that got no gradient counts as zero. Under ZeRO
    (`sharing_stage` 1 to 3) every bucket divides by the axis' size, from stage 2 on its memory is
    there only while it is reduced, and `groups` says what goes together.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        axis: Axis,
        bucket_bytes: int = BUCKET_BYTES,
        sharing_stage: int = 0,
        groups: list[list[Parameter]] | None = None,
    ):
        self.axis = axis
        self.parameters = list(parameters)
        self.kinds = [_kind(p) for p in parameters]
        self.bucket_bytes = bucket_bytes
        self.sharing_stage = sharing_stage
        self.reducer: Reducer | None = None
        self.groups = in_buckets(self.parameters, bucket_bytes) if groups is None else groups
        self.buffers = [self._buffer(group) for group in self.groups]
        self.views: dict[Parameter, Tensor] = {}
        self.bucket_of: dict[Parameter, int] = {}
        for index, (group, buffer) in enumerate(zip(self.groups, self.buffers, strict=True)):
            self.views |= views_of(group, buffer)
            self.bucket_of |= dict.fromkeys(group, index)
        # Set between overlap_gradients and finish_gradients.
        self.reduced_tokens: int | Tensor | None = None
        self.start()

    def _buffer(self, group: list[Parameter]) -> Tensor:
        parts = self.axis.size if self.sharing_stage else 1
        dtype, device, _ = _kind(group[0])
        size = -(-sum(p.numel() for p in group) // parts) * parts
        return torch.zeros(size, dtype=dtype, device=device)

    def fits(self, parameters: Sequence[Parameter], axis: Axis) -> bool:
        """Whether these are still the parameters (not frozen, moved or cast since)."""
        return (
            axis is self.axis
            and [id(p) for p in parameters] == [id(p) for p in self.parameters]
            and [_kind(p) for p in parameters] == self.kinds
        )

    def start(self) -> None:
        """Forget what was reduced: the next `ready` or `finish` belongs to a new step."""
        self.waiting_for = [len(group) for group in self.groups]
        self.handles: list[Handle] = []
        self.weight: Tensor | None = None

    def ready(self, parameter: Parameter, tokens: Callable[[], int | Tensor]) -> None:
        """The gradient of `parameter` is complete; starts each bucket that is now full."""
        self.waiting_for[self.bucket_of[parameter]] -= 1
        if self.waiting_for[self.bucket_of[parameter]] < 0:
            raise RuntimeError("overlap_gradients wraps ONE backward, that of the last micro-batch")
        while len(self.handles) < len(self.groups) and not self.waiting_for[len(self.handles)]:
            self._reduce_next(tokens())

    def finish(self, tokens: int | Tensor) -> None:
        """Reduces the buckets that are left and waits for all of them."""
        while len(self.handles) < len(self.groups):
            self._reduce_next(tokens)
        for handle in self.handles:
            handle.wait()

    @torch.no_grad()
    def _reduce_next(self, tokens: int | Tensor) -> None:
        if self.weight is None:
            self.weight = gradient_weight(tokens, self.axis, self.buffers[0].device)
        index = len(self.handles)
        make_room(self.buffers[index])
        for p in self.groups[index]:
            view = self.views[p]
            if p.grad is None:
                view.zero_()
            elif p.grad.data_ptr() != view.data_ptr() or p.grad.stride() != view.stride():
                view.copy_(p.grad)  # after zero_grad(set_to_none=True) autograd made a new tensor
            p.grad = view
        buffer = self.buffers[index].mul_(self.weight.to(self.buffers[index].dtype))
        if self.reducer is not None:
            self.handles.append(self.reducer(self, index))
        else:
            self.handles.append(all_reduce(buffer, self.axis, inplace=True, async_op=True))


def _buckets_of(model: Model, bucket_bytes: int | None = None) -> GradientBuckets:
    """The model's buckets, made on first use and again when its parameters have changed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    made: GradientBuckets | None = vars(model).get("gradient_buckets")
    size = bucket_bytes or (made.bucket_bytes if made else BUCKET_BYTES)
    kept = made and made.bucket_bytes == size and made.fits(parameters, model.mesh.dp)
    if made and made.sharing_stage:
        if not kept or model.gradient_reducer:
            raise RuntimeError(
                "after Zero(model, ...) parameters cannot be frozen, thawed, moved or cast, "
                "buckets not resized, and gradients not reduced in another way"
            )
        return made
    if made is None or not kept:
        made = GradientBuckets(parameters, model.mesh.dp, size)
        vars(model)["gradient_buckets"] = made
    made.reducer = model.gradient_reducer
    return made


@contextlib.contextmanager
def overlap_gradients(
    model: Model, bucket_bytes: int | None = None, tokens: int | Tensor | None = None
) -> Iterator[None]:
    """Put the backward of the *last* micro-batch inside: its buckets are reduced as they fill.

        with overlap_gradients(model):
            model.loss(tokens, targets).backward()
        finish_gradients(model)

    Earlier micro-batches stay outside and send nothing. `bucket_bytes` sets the size of a bucket.
    ZeRO 2 and 3 may wrap every micro-batch, each in a block of its own, and so never hold whole
    gradients: `tokens` is then the number of this rank's targets in all of them together. Raises
    RuntimeError on a second backward: its gradients would miss the reduction.
    """
    if model.mesh.dp.size == 1:
        yield
        return
    buckets = _buckets_of(model, bucket_bytes)
    buckets.start()

    def seen() -> int | Tensor:
        return model.tokens_since_finish if tokens is None else tokens

    def hook(parameter: Parameter) -> None:
        buckets.ready(parameter, seen)

    hooks = [p.register_post_accumulate_grad_hook(hook) for p in buckets.parameters]
    try:
        yield
        with phase("backward"):
            buckets.finish(seen())
    finally:
        for handle in hooks:
            handle.remove()
    buckets.reduced_tokens = model.tokens_since_finish


@torch.no_grad()
def sum_partial_gradients(model: Model) -> None:
    """With sequence parallelism: adds up over tp what each rank knows from its own tokens only.

    That is the gradient of every parameter that is whole on all tp ranks (`model.is_partial`), in
    one flat all-reduce. Megatron-LM: `_allreduce_non_tensor_model_parallel_grads`.
    """
    partial = [
        piece.gradient for piece in pieces(cast(Module, model)) if model.is_partial(piece.name)
    ]
    owed = [gradient for gradient in partial if gradient is not None]
    if owed and model.mesh.tp.size > 1:
        with phase("backward"):
            total = all_reduce(torch.cat([grad.flatten() for grad in owed]), model.mesh.tp)
        for grad, whole in zip(owed, total.split([grad.numel() for grad in owed]), strict=True):
            grad.copy_(whole.view_as(grad))


@torch.no_grad()
def sum_tied_gradients(model: Model) -> None:
    """In a pipeline: first and last stage each know a part of the tied embedding's gradient.

    They trade and add, and so keep equal copies. Megatron-LM: `_allreduce_word_embedding_grads`.
    """
    copy, axis = model.tied_copy(), model.mesh.pp
    if copy is not None and copy.grad is not None:
        other, theirs = axis.size - 1 if axis.rank == 0 else 0, torch.empty_like(copy.grad)
        messages = [Message("send", copy.grad, other, "backward")]
        messages.append(Message("recv", theirs, other, "backward"))
        for handle in exchange(messages, axis):
            handle.wait()
        copy.grad.add_(theirs)


def finish_gradients(model: Model) -> None:
    """After the last backward: makes every `.grad` the gradient of the mean over all tokens.

    Collective. Averages over dp what `overlap_gradients` has not averaged already, weighted by the
    tokens of each rank since the last call; adds up partial sums over tp, and tied embeddings over
    the pipeline. Raises RuntimeError when a backward came after `overlap_gradients`.
    """
    sum_tied_gradients(model)
    if model.mesh.dp.size > 1:
        buckets = _buckets_of(model)
        if buckets.reduced_tokens is None:
            buckets.start()
            with phase("backward"):
                buckets.finish(model.tokens_since_finish)
        elif buckets.reduced_tokens != model.tokens_since_finish:
            raise RuntimeError(
                "a forward and backward came after overlap_gradients: it must wrap the last one"
            )
        buckets.reduced_tokens = None
    sum_partial_gradients(model)
    model.tokens_since_finish = 0


def accumulate_gradients(
    model: Model, microbatches: Sequence[tuple[Tensor, Tensor]], loss_scale: float | Tensor = 1.0
) -> Tensor:
    """Forward and backward of this rank's micro-batches (tokens, targets), (batch, seq) each.

    Each loss is a mean over its own real targets, so it is weighted by its share of the rank's:
    the mean of such means is another number as soon as the shares differ. Only the last
    micro-batch sends gradients over dp. Gradients are those of `loss_scale` times the loss (fp16
    needs it). Returns the rank's mean loss, unscaled and without a graph; call `finish_gradients`
    next.
    """
    counts = [int((targets != -100).sum()) for _, targets in microbatches]
    tokens_of_step = model.tokens_since_finish + sum(counts)
    # A rank that may not keep whole gradients sends those of every micro-batch.
    shed = model.mesh.dp.size > 1 and _buckets_of(model).sharing_stage > 1
    total = torch.zeros((), device=model.mesh.device)
    for i, ((tokens, targets), count) in enumerate(zip(microbatches, counts, strict=True)):
        last = i == len(microbatches) - 1
        # A finish_gradients of the learner's own averages by itself: nothing is done ahead of it.
        ahead = (last or shed) and not replaced("finish_gradients")
        overlap = overlap_gradients(model, tokens=tokens_of_step if shed else None)
        with overlap if ahead else contextlib.nullcontext():
            loss = model.loss(tokens, targets) * (count / max(1, sum(counts)))
            (loss * loss_scale).backward()
        total = total + loss.detach()
    return total
