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
    "minimegatron.ranks.launch": ["launch", "shutdown"],
    "minimegatron.ranks.errors": ["RankError", "RankTimeout"],
    "minimegatron.ranks.mesh": ["Axis", "Mesh", "single", "connect"],
    "minimegatron.ranks.collectives": [
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "broadcast",
        "all_to_all",
        "send",
        "recv",
        "barrier",
    ],
    "minimegatron.ranks.ledger": ["ledger", "phase", "Ledger", "Record"],
    "minimegatron.tensor_parallel.operators": [
        "f",
        "g",
        "scatter",
        "gather",
        "sequence_all_gather",
        "sequence_reduce_scatter",
    ],
    "minimegatron.tensor_parallel.linear": ["ColumnParallelLinear", "RowParallelLinear"],
    "minimegatron.tensor_parallel.vocabulary": [
        "VocabParallelEmbedding",
        "vocab_parallel_cross_entropy",
    ],
    "minimegatron.tensor_parallel.dropout": ["DropoutStreams", "dropout"],
    "minimegatron.models.config": ["GPTConfig"],
    "minimegatron.models.attention": ["ParallelAttention"],
    "minimegatron.models.mlp": ["ParallelMLP"],
    "minimegatron.models.transformer": ["TransformerLayer"],
    "minimegatron.models.gpt": ["GPT"],
    "minimegatron.models.generate": ["generate"],
    "minimegatron.data_parallel.gradients": [
        "GradientBuckets",
        "gradient_weight",
        "overlap_gradients",
        "accumulate_gradients",
        "finish_gradients",
    ],
    "minimegatron.pipeline_parallel.schedule": ["Action", "Schedule", "ScheduleError"],
    "minimegatron.pipeline_parallel.schedules": [
        "gpipe",
        "one_f_one_b",
        "interleaved",
        "zb_h1",
        "zb_h2",
        "zbv",
        "bubble_fraction",
    ],
    "minimegatron.pipeline_parallel.simulate": ["simulate", "Timeline"],
    "minimegatron.analysis.flops": ["parameter_count", "flops_per_token"],
    "minimegatron.training.text": ["default_text", "read_text"],
    "minimegatron.training.data": ["Corpus", "make_corpus"],
    "minimegatron.training.optimizer": [
        "make_optimizer",
        "gradient_norm",
        "clip_gradients",
        "learning_rate",
    ],
    "minimegatron.training.loop": ["train", "History"],
    "minimegatron.training.parity": ["parity", "ParityReport"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    # Not stored after the first use: `using=` replaces pieces in their home for one call.
    if name not in _MODULE_OF:
        raise AttributeError(f"minimegatron has no {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
