"""Forward and backward of a step's micro-batches, with a pipeline or without one.

Megatron-LM: `get_forward_backward_func` in `megatron/core/pipeline_parallel/schedules.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minimegatron.data_parallel.gradients import accumulate_gradients
from minimegatron.models.gpt import GPT
from minimegatron.pipeline_parallel.executor import run_schedule
from minimegatron.pipeline_parallel.schedule import Action, Schedule
from minimegatron.pipeline_parallel.schedules import make_schedule


def forward_backward(
    model: GPT,
    microbatches: Sequence[tuple[Tensor, Tensor]],
    schedule: str = "1f1b",
    loss_scale: float = 1.0,
) -> Tensor:
    """This rank's mean loss; gradients of `loss_scale` times it. `finish_gradients` is next.

    Under torch.no_grad() forwards alone, whatever the schedule.
    """
    p, m, v = model.mesh.pp.size, len(microbatches), model.chunks
    if not torch.is_grad_enabled():
        forwards = [Action("F", n, chunk) for chunk in range(v) for n in range(m)]
        return run_schedule(model, Schedule([forwards] * p, m, v), microbatches)
    # a learner's own accumulate_gradients may not know the scale
    scaled: dict[str, Any] = {} if loss_scale == 1.0 else {"loss_scale": loss_scale}
    if p * v == 1:
        return accumulate_gradients(model, microbatches, **scaled)
    return run_schedule(model, make_schedule(schedule, p, m, v), microbatches, **scaled)
