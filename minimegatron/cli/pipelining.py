"""`minimegatron bench pipelining`: a step through two stages against one process, and why.

What two stages on two cores should take follows from the stages' own measured times: the simulator
puts them in the schedule's order. What is beyond it are messages, and cores that do other things.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import minimegatron as mm
from minimegatron.cli.bench import CONFIG, ROUNDS, VOCABULARY, Row, seconds
from minimegatron.data_parallel.gradients import accumulate_gradients, finish_gradients
from minimegatron.pipeline_parallel.schedule import Schedule
from minimegatron.pipeline_parallel.simulate import Timeline, simulate

MICROBATCHES = 8  # of one sequence


def _microbatches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    shape = (MICROBATCHES, 2, 1, CONFIG["seq_length"])
    return [tuple(both) for both in torch.randint(VOCABULARY, shape, generator=draw)]  # type: ignore[misc]


def on_ranks(mesh: mm.Mesh, schedule: Schedule) -> Any:
    """The ledger of one step, after one to warm up; and its time."""
    model, parts = mm.GPT(mm.GPTConfig(VOCABULARY, **CONFIG), mesh), _microbatches()

    def step() -> None:
        mm.run_schedule(model, schedule, parts)
        finish_gradients(model)

    step()
    with mm.ledger() as log:
        taken = seconds(step)
    return log, taken


def explained(run: Timeline) -> tuple[float, float]:
    """Of a measured run: the work of the busier rank, and the simulator's bubble on top of it."""
    costs: dict[str, list[float]] = {kind: [] for kind in "FB"}
    for spans in run.spans:
        for kind, found in costs.items():
            found.append(statistics.mean(end - at for a, at, end in spans if a.kind == kind))
    model = simulate(run.schedule, costs["F"], costs["B"], [0.0] * len(costs["B"]))
    return run.ideal_time, model.total_time - model.ideal_time


def rows() -> Iterator[Row]:
    """1F1B on two stages, in turns with one process that has both cores."""
    torch.set_num_threads(2)
    model, parts = mm.GPT(mm.GPTConfig(VOCABULARY, **CONFIG)), _microbatches()
    schedule = mm.one_f_one_b(2, MICROBATCHES)
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        alone = seconds(lambda: accumulate_gradients(model, parts), 2)
        ranks = mm.launch(on_ranks, schedule, pp=2, timeout=300)
        step = max(taken for _, taken in ranks)
        work, bubble = explained(Timeline.measured(schedule, [log for log, _ in ranks]))
        shares = {"": step, ": work of the busier rank": work, ": its bubble, simulated": bubble}
        shares[": messages and the rest"] = step - work - bubble
        for what, share in shares.items():
            found.setdefault(what, []).append(share / alone)
    for what, ratios in found.items():
        name = f"GPT gradients, pp=2, m={MICROBATCHES} / one process, 2 threads{what}"
        yield Row(name, ratios, None, "x")
