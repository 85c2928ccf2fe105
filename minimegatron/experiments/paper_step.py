"""One training step of the paper's 1.2-billion model on one GPU: how fast, how full, and why.

The first row of table 1 of arXiv:1909.08053, which fits one GPU and is the baseline of all its
scaling: hidden 1536, 40 layers, 16 heads, sequences of 1024, 8 of them; bf16 with fp32 masters and
gradients, the optimizer included. The paper reached 39 TFLOP/s, 30% of a V100's peak. MFU is
72 B L s h^2 (1 + s/6h + V/12hL) over the step's time and the hardware's peak. Where the time goes
is torch's profiler's account of one more step, kind by kind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from minimegatron.analysis.flops import flops_per_token, parameter_count, utilization
from minimegatron.data_parallel.gradients import accumulate_gradients, finish_gradients
from minimegatron.models.config import GPTConfig
from minimegatron.models.gpt import GPT
from minimegatron.ranks.mesh import single
from minimegatron.training.optimizer import make_optimizer
from minimegatron.training.precision import half_precision, optimizer_step

PAPER = GPTConfig(vocab_size=51200, seq_length=1024, hidden_size=1536, num_layers=40, num_heads=16)
BATCH, WARM_UP, STEPS = 8, 3, 10
# Bytes: 18 for each of 1.2 billion parameters, 32 bsh in each layer, logits in fp32 and bf16.
MEMORY = 45e9
# Dense bf16 products, FLOP/s, from NVIDIA's data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12}
# Words in the names of torch's operators, in this order.
KINDS = {
    "attention": ("attention",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul"),
    "optimizer": ("adam", "_foreach"),
}
OTHER, IDLE = "norms, GeLU, residuals, loss, casts", "waiting for work"


def run(
    say: Callable[[str], None], config: GPTConfig = PAPER, batch: int = BATCH, device: str = "cuda"
) -> dict[str, Any]:
    """Speed, MFU, peak memory and what limits a step of `config` on one device.

    Seconds are of one step. On a CPU there is no peak to compare with, and no peak memory. Raises
    ValueError where the GPU that it needs is not there, or too small.
    """
    if device == "cuda":
        check_gpu()
    mesh = single(device)
    torch.manual_seed(0)
    say(f"a GPT of {parameter_count(config):,} parameters on {name_of(mesh.device)} ...")
    model = half_precision(GPT(config, mesh), torch.bfloat16)
    optimizer = make_optimizer(model)
    tokens = torch.randint(config.vocab_size, (batch, config.seq_length + 1)).to(mesh.device)
    parts = [(tokens[:, :-1], tokens[:, 1:].contiguous())]

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        loss = accumulate_gradients(model, parts)
        finish_gradients(model)
        optimizer_step(model, optimizer, max_norm=1.0)
        float(loss)
        wait(mesh.device)
        return time.perf_counter() - begin

    say(f"{WARM_UP} steps to warm up, {STEPS} measured, one profiled ...")
    for _ in range(WARM_UP):
        step()
    seconds = [step() for _ in range(STEPS)]
    median = statistics.median(seconds)
    speed = batch * config.seq_length / median
    kinds = where_time_goes(step, mesh.device, median)
    peak = peak_of(mesh.device)
    ideal = peak and batch * config.seq_length * flops_per_token(config) / peak
    used = utilization(config, speed, peak) if peak else None
    result = {
        "config": asdict(config),
        "batch": batch,
        "precision": "bf16",
        "device": name_of(mesh.device),
        "parameters": parameter_count(config),
        "step_seconds": [round(taken, 6) for taken in seconds],
        "tokens_per_second": round(speed, 1),
        "model_flops_per_second": speed * flops_per_token(config),
        "peak_flops_per_second": peak,
        "mfu": used and round(used.mfu, 4),
        "peak_memory_bytes": peak_memory(mesh.device),
        "seconds_by_kind": {kind: round(taken, 6) for kind, taken in kinds.items()},
        "limit": limit(kinds, median, ideal),
    }
    say(f"{speed:,.0f} tokens/s, {median:.3f} s a step" + (f", MFU {used.mfu:.1%}" if used else ""))
    say(str(result["limit"]))
    return result


def check_gpu() -> None:
    """ValueError, with the way out, where there is no GPU or one without room."""
    need = (
        "paper_step trains 1.2 billion parameters and needs one NVIDIA GPU with about "
        f"{MEMORY / 1e9:.0f} GB (an A100 or H100, say)"
    )
    if not torch.cuda.is_available():
        raise ValueError(f"{need}: torch sees none here")
    memory = torch.cuda.get_device_properties(0).total_memory
    if memory < MEMORY:
        raise ValueError(f"{need}: {torch.cuda.get_device_name()} has {memory / 1e9:.0f} GB")


def wait(device: torch.device) -> None:
    """Until the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def peak_of(device: torch.device) -> float | None:
    """FLOP/s that its data sheet gives for bf16 products; None for a device that is not listed."""
    name = name_of(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors had at one time."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def where_time_goes(
    step: Callable[[], float], device: torch.device, whole: float
) -> dict[str, float]:
    """Seconds of the device in one step of `whole` seconds, by kind of work."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        step()
    kinds = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in profiled.key_averages():
        if not event.key.startswith("aten::"):
            continue  # kernels and autograd's nodes: counted with the operator that asked for them
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), OTHER)
        kinds[kind] += taken / 1e6
    kinds[IDLE] = max(0.0, whole - sum(kinds.values()))
    return kinds


def limit(kinds: dict[str, float], whole: float, at_peak: float | None) -> str:
    """What stands between the step and the time that its products would take at peak."""
    if at_peak is not None:
        products = kinds["matrix products"]
        kinds = kinds | {"matrix products": max(0.0, products - at_peak)}
    largest = max(kinds, key=lambda kind: kinds[kind])
    beyond = " beyond their time at peak" if at_peak and largest == "matrix products" else ""
    return f"{largest}{beyond}: {kinds[largest] / whole:.0%} of the step"
