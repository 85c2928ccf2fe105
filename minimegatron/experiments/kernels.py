"""Kernels and copies on one device: fused against eager, and memory that lies well or badly.

A kernel that computes little takes the time of its bytes, so the model of this file is the roof of
a roofline: the bytes that must move. It knows nothing of tanh and exp, nor of caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimegatron.experiments.pairs import Row, Sizes, median, pair
from minimegatron.models.fusion import bias_gelu, causal_softmax, fused
from minimegatron.ranks.mesh import Mesh


class Traffic(TorchDispatchMode):
    """Counts kernels, and the bytes of the tensors that they read and write; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
            self.kernels += 1
            tensors = [t for t in (*args, result) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def _forward(function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        function(*inputs)


def _both(function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    torch.autograd.grad(function(*inputs), tensors, inputs[0].detach())


def fusion(mesh: Mesh, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """bias-GeLU and causal softmax: eager against compiled, forward and with the backward."""
    import torch._inductor.config as inductor
    from torch._inductor.utils import fresh_cache, run_fw_bw_and_get_code

    inductor.compile_threads = 1  # in this process: a rank leaves none behind
    n = sizes.numbers
    x = torch.randn(n, n).requires_grad_()
    scores = torch.randn(n * n // 256**2 or 1, min(n, 256), min(n, 256)).requires_grad_()
    cases: list[tuple[str, Callable[..., Tensor], tuple[Any, ...]]] = [
        ("bias-GeLU", bias_gelu, (x, torch.randn(n).requires_grad_())),
        ("causal softmax", causal_softmax, (scores, 0.125)),
    ]
    counts, rows = {}, []
    for name, function, inputs in cases:
        compiled = fused(function)
        begin = time.perf_counter()
        with fresh_cache():  # compiled anew, whatever was compiled before
            _, programs = run_fw_bw_and_get_code(partial(compiled, *inputs))
        compiling = time.perf_counter() - begin
        made = sum(p.count("= async_compile.") for p in programs)
        one = inputs[0].numel() * inputs[0].element_size()
        for passes, ideal in (("forward", 2), ("both ways", 5)):
            ways = tuple(
                partial(_forward, f, inputs) if passes == "forward" else partial(_both, f, inputs)
                for f in (compiled, function)
            )
            with Traffic() as eager:
                ways[1]()
            # Fused: forward reads x and writes y; backward reads two tensors and writes one.
            expected = ideal * one / eager.bytes
            rows.append(pair(f"{name}, {passes}", (ways[0], ways[1]), expected, sizes.rounds))
            counts[f"{name}, {passes}"] = {
                "eager kernels": eager.kernels,
                "eager tensors": round(eager.bytes / one, 1),
                "fused kernels": made if passes != "forward" else 1,
                "fused tensors": ideal,
            }
        counts[f"{name}, {passes}"]["compile seconds"] = round(compiling, 1)
    return counts, rows


def copies(mesh: Mesh, sizes: Sizes) -> list[Row]:
    """Copies between a GPU and the host where there is one, else inside the host's memory."""
    n, rounds = sizes.numbers, sizes.rounds
    if mesh.device.type == "cuda":
        return _copies_to_gpu(n, rounds, mesh.device)
    source, target = torch.randn(n, n), torch.empty(n, n)
    parts = list(zip(target.view(-1, 256), source.view(-1, 256), strict=True))

    def one_by_one() -> None:
        for to, part in parts:
            to.copy_(part)

    whole = partial(target.copy_, source)
    return [
        pair(f"one copy / {len(parts)} small ones", (whole, one_by_one), 1.0, rounds),
        pair(
            "copy as it lies / transposed", (whole, partial(target.copy_, source.t())), 1.0, rounds
        ),
    ]


def _copies_to_gpu(n: int, rounds: int, device: torch.device) -> list[Row]:
    """Pinned memory, which the GPU reads by itself, against pageable, and under a product."""
    pageable = torch.randn(n, n, device="cpu")
    pinned, target = pageable.pin_memory(), torch.empty(n, n, device=device)
    a, side = torch.randn(n, n, device=device), torch.cuda.Stream()

    def both(overlapped: bool) -> None:
        with torch.cuda.stream(side if overlapped else torch.cuda.current_stream()):
            target.copy_(pinned, non_blocking=True)
        a @ a

    copy, product = median(partial(both, False), rounds), median(lambda: a @ a, rounds)
    copy -= product
    return [
        pair(
            "to the GPU: pinned / pageable",
            (partial(target.copy_, pinned), partial(target.copy_, pageable)), 1.0, rounds,
        ),
        pair(
            "to the GPU: under / before a product", (partial(both, True), partial(both, False)),
            max(copy, product) / (copy + product), rounds,
        ),
    ]  # fmt: skip
