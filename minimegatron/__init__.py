"""minimegatron: Megatron-LM (arXiv:1909.08053), taught by building it.

`import minimegatron as mm` exposes every name of the course. A name is fetched from the file that
teaches it when it is first used, so that importing the package costs nothing: the table below is
also the index of the course.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ranks.launch": "launch shutdown",
    "ranks.errors": "RankError RankTimeout",
    "ranks.mesh": "Axis Mesh single connect",
    "ranks.collectives": "all_reduce all_gather reduce_scatter broadcast all_to_all send "
    "recv barrier",
    "ranks.ledger": "ledger phase span Ledger Record Span",
    "tensor_parallel.operators": "f g scatter gather sequence_all_gather sequence_reduce_scatter",
    "tensor_parallel.linear": "ColumnParallelLinear RowParallelLinear",
    "tensor_parallel.vocabulary": "VocabParallelEmbedding vocab_parallel_cross_entropy",
    "tensor_parallel.dropout": "DropoutStreams dropout",
    "tensor_parallel.recompute": "recompute",
    "models.config": "GPTConfig",
    "models.attention": "ParallelAttention",
    "models.mlp": "ParallelMLP",
    "models.fusion": "bias_gelu causal_softmax fused",
    "models.transformer": "TransformerLayer",
    "models.gpt": "GPT",
    "models.generate": "generate",
    "pipeline_parallel.schedule": "Action Schedule ScheduleError",
    "pipeline_parallel.schedules": "gpipe one_f_one_b interleaved zb_h1 zb_h2 zbv bubble_fraction",
    "pipeline_parallel.simulate": "Timeline simulate",
    "pipeline_parallel.executor": "run_schedule",
    "data_parallel.gradients": "GradientBuckets gradient_weight overlap_gradients "
    "accumulate_gradients sum_partial_gradients sum_tied_gradients finish_gradients",
    "data_parallel.hierarchical": "split_axis hierarchical_all_reduce reduce_by_nodes",
    "data_parallel.compression": "compress_gradients",
    "data_parallel.zero": "Zero",
    "analysis.activations": "activation_terms activation_bytes",
    "analysis.flops": "parameter_count flops_per_token",
    "training.text": "default_text read_text",
    "training.data": "Corpus make_corpus",
    "training.optimizer": "make_optimizer gradient_norm clip_gradients learning_rate",
    "training.precision": "DynamicLossScaler half_precision unscale_gradients found_overflow "
    "optimizer_step",
    "training.recompute": "saved_tensors SavedTensors",
    "training.loop": "train History",
    "training.parity": "parity ParityReport",
}
_MODULE_OF = {name: f"{__name__}.{home}" for home, names in _HOME.items() for name in names.split()}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    # Not stored after the first use: `using=` replaces pieces in their home for one call.
    if name not in _MODULE_OF:
        raise AttributeError(f"minimegatron has no {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
