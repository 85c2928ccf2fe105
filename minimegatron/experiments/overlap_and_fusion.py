"""What overlap, chunks, buckets, fusion and copies are worth, beside what a cost model expects.

Every row is a ratio of two times, this way over that way, taken in turns on the same ranks; the
median of the rounds counts. The model knows little: the parts' own times, a link's latency and
bandwidth, the bytes a kernel must move. Where it is wrong the row says what it does not know: two
ranks on two cores move their messages with the cores they compute with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from minimegatron.analysis.network import Link, collective_seconds
from minimegatron.data_parallel.gradients import finish_gradients, overlap_gradients
from minimegatron.experiments.kernels import copies, fusion
from minimegatron.experiments.pairs import Call, Row, Sizes, median, pair
from minimegatron.experiments.slow_network import slow_network
from minimegatron.models.config import GPTConfig
from minimegatron.models.gpt import GPT
from minimegatron.ranks.collectives import all_reduce
from minimegatron.ranks.launch import launch
from minimegatron.ranks.mesh import Axis, Mesh
from minimegatron.tensor_parallel.linear import RowParallelLinear

SLOW = ", slow network"


def run(say: Callable[[str], None], sizes: Sizes | None = None) -> dict[str, Any]:
    """Measures every row; ratios without a unit, times in seconds, bandwidths in bytes a second."""
    sizes = sizes or Sizes()
    say("two ranks: messages under products ...")
    link, over_messages = launch(on_two_ranks, sizes, tp=2, timeout=600)[0]
    say("two ranks: buckets under a backward ...")
    over_buckets = launch(buckets, sizes, link, dp=2, timeout=600)[0]
    say("one rank: kernels and copies ...")
    kernels, over_kernels = launch(fusion, sizes, timeout=600)[0]
    over_copies = launch(copies, sizes, timeout=600)[0]
    rows = [*over_messages, *over_buckets, *over_kernels, *over_copies]
    return {
        "settings": vars(sizes),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "latency": round(link.latency, 7),
        "bandwidth": round(link.bandwidth),
        "kernels": kernels,
        "rows": {row.name: row.plain() for row in rows},
    }


def measured_link(axis: Axis, rounds: int) -> Link:
    """The latency and bandwidth that an all-reduce of 4 bytes and one of 4 MiB have."""
    small, large = torch.ones(1), torch.ones(1 << 20)
    first = median(lambda: all_reduce(small, axis), rounds, axis)
    second = median(lambda: all_reduce(large, axis), rounds, axis)
    steps = 2 * (axis.size - 1)
    moved = 2 * (axis.size - 1) / axis.size * 4 * (large.numel() - 1)
    return Link(first / steps, moved / max(second - first, 1e-9))


def in_chunks(product: float, message: float, latency: float, chunks: int) -> float:
    """Seconds of a product whose all-reduce travels in chunks, each under the next one's product.

    `message` is the time of the bytes of all chunks together, `latency` of each by itself.
    """
    part, sent = product / chunks, latency + message / chunks
    return part + (chunks - 1) * max(part, sent) + sent


def on_two_ranks(mesh: Mesh, sizes: Sizes) -> tuple[Link, list[Row]]:
    """A backward with its all-reduce under the weight gradient, and a forward in chunks."""
    axis, rounds, h = mesh.tp, sizes.rounds, sizes.hidden
    link = measured_link(axis, rounds)
    grad, x = torch.randn(sizes.tokens, 2 * h), torch.randn(sizes.tokens, h)
    weight = torch.randn(2 * h, h)
    of_input = median(lambda: grad @ weight, rounds, axis)
    of_weight = median(lambda: grad.t() @ x, rounds, axis)

    def backward(overlapped: bool) -> None:
        handle = all_reduce(grad @ weight, axis, inplace=True, async_op=True)
        if not overlapped:
            handle.wait()
        grad.t() @ x
        handle.wait()

    layers = {
        k: RowParallelLinear(4 * h, h, axis, bias=False, chunks=k).requires_grad_(False)
        for k in (1, 2, 4, 8)
    }
    part = torch.randn(1, sizes.tokens, 4 * h // axis.size)
    product = median(lambda: part @ layers[1].weight.t(), rounds, axis)
    size = x.numel() * x.element_size()
    even = Link(link.latency, size / max(of_weight, product))  # its message takes a product's time

    def rows(network: str, using: Link) -> Iterator[Row]:
        message = collective_seconds("all_reduce", size, axis.size, using)
        latency = collective_seconds("all_reduce", 0, axis.size, using)
        expected = (of_input + max(of_weight, message)) / (of_input + of_weight + message)
        name = f"all-reduce under dW{network}"
        yield pair(
            name, (partial(backward, True), partial(backward, False)), expected, rounds, axis
        )
        for k in (2, 4, 8):
            times = [in_chunks(product, message - latency, latency, n) for n in (k, 1)]
            ways = partial(layers[k], part), partial(layers[1], part)
            yield pair(f"{k} chunks{network}", ways, times[0] / times[1], rounds, axis)

    measured = list(rows("", link))
    if mesh.device.type == "cpu":  # a GPU does not sleep with its host
        with slow_network(partial(collective_seconds, link=even)):
            measured += rows(SLOW, even)
    return link, measured


def buckets(mesh: Mesh, sizes: Sizes, link: Link) -> list[Row]:
    """Gradients of a GPT: one message or one a tensor; under the backward or after it."""
    axis, rounds = mesh.dp, sizes.rounds
    config = GPTConfig(256, 64, sizes.hidden // 2, sizes.layers, 4)
    model = GPT(config, mesh)
    tokens = torch.randint(256, (4, 64))
    many = [torch.randn_like(p) for p in model.parameters()]
    flat = torch.cat([t.flatten() for t in many])
    size = flat.numel() * flat.element_size()

    def seconds(messages: int, using: Link) -> float:
        alone = collective_seconds("all_reduce", 0, axis.size, using)
        return collective_seconds("all_reduce", size, axis.size, using) + (messages - 1) * alone

    def one_by_one() -> None:
        for t in many:
            all_reduce(t, axis)

    def step(overlapped: bool, count: int) -> None:
        model.zero_grad()
        if overlapped:
            with overlap_gradients(model, size // count + 1):
                model.loss(tokens, tokens).backward()
        else:
            model.loss(tokens, tokens).backward()
        finish_gradients(model)

    def alone() -> None:
        model.zero_grad()
        model.loss(tokens, tokens).backward()
        model.tokens_since_finish = 0

    work, count = median(alone, rounds, axis), 4
    even = Link(link.latency, size / (work / 2))  # as long as the backward alone, about

    def rows(network: str, using: Link) -> Iterator[Row]:
        # The first message is the count of tokens; the last bucket comes when backward is over.
        messages = seconds(count + 1, using)
        expected = (work + messages / count) / (work + messages)
        ways: tuple[Call, Call] = partial(step, True, count), partial(step, False, count)
        yield pair(f"{count} buckets under backward{network}", ways, expected, rounds, axis)
        expected = seconds(1, using) / seconds(len(many), using)
        ways = partial(all_reduce, flat, axis), one_by_one
        yield pair(f"one buffer for {len(many)} tensors{network}", ways, expected, rounds, axis)

    measured = list(rows("", link))
    if mesh.device.type == "cpu":  # a GPU does not sleep with its host
        with slow_network(partial(collective_seconds, link=even)):
            measured += rows(SLOW, even)
    return measured
