"""Forward and backward of a step's micro-batches, with a pipeline or without one.

Megatron-LM: `get_forward_backward_func` in `megatron/core/pipeline_parallel/schedules.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minimegatron.data_parallel.gradients import accumulate_gradients
from minimegatron.models.gpt import GPT
from minimegatron.pipeline_parallel.executor import run_schedule
from minimegatron.pipeline_parallel.schedules import make_schedule


def forward_backward(
    model: GPT,
    microbatches: Sequence[tuple[Tensor, Tensor]],
    schedule: str = "1f1b",
    loss_scale: float = 1.0,
) -> Tensor:
    """This rank's mean loss; gradients of `loss_scale` times it. `finish_gradients` is next."""
    scaled = {} if loss_scale == 1.0 else {"loss_scale": loss_scale}  # a learner's own may lack it
    stages = model.mesh.pp.size * model.chunks
    if stages == 1:
        return accumulate_gradients(model, microbatches, **scaled)
    made = make_schedule(schedule, model.mesh.pp.size, len(microbatches), model.chunks)
    return run_schedule(model, made, microbatches, **scaled)
