"""Pictures and sliders of the course: one function per picture, one visual language (style.py).

    from minimegatron import figures
    figures.split_columns(tp=4)

Every function returns a Picture, which shows itself in a notebook and says itself in words.
"""

from minimegatron.figures.activations import activation_bars, explore_activations, ways_to_save
from minimegatron.figures.bars import stacked_bars
from minimegatron.figures.batch import split_batch, steps_against_batch, token_weights
from minimegatron.figures.collective import collective
from minimegatron.figures.compression import error_feedback, losses_by_message
from minimegatron.figures.counting import explore_model, model_costs
from minimegatron.figures.course import course_map, key
from minimegatron.figures.curves import curves
from minimegatron.figures.gelu import explore_gelu, gelu_of_sum
from minimegatron.figures.heads import attention_heads, explore_qkv, heads_to_sheets, qkv_rows
from minimegatron.figures.held import held_memory
from minimegatron.figures.layer import transformer_layer
from minimegatron.figures.losses import losses
from minimegatron.figures.masks import dropout_masks
from minimegatron.figures.matmul import row_bias, split_columns, split_rows
from minimegatron.figures.mlp import mlp_order
from minimegatron.figures.network import all_reduce_times, explore_all_reduce, times_over_sizes
from minimegatron.figures.nodes import hierarchical_all_reduce
from minimegatron.figures.norm import norm_squares
from minimegatron.figures.numbers import explore_loss_scale, fp16_line, number_formats
from minimegatron.figures.operators import f_and_g
from minimegatron.figures.overlap import explore_chunks, overlap_timeline
from minimegatron.figures.pair import column_row_pair
from minimegatron.figures.pairwise import pairwise_all_reduce
from minimegatron.figures.picture import Picture
from minimegatron.figures.predict import compare_prediction, predicted_and_measured
from minimegatron.figures.processes import mesh, notebook_and_ranks
from minimegatron.figures.ratios import ratios
from minimegatron.figures.ring import ring_all_reduce
from minimegatron.figures.scales import loss_scales
from minimegatron.figures.schedule import draw_schedule, explore_schedule, schedule_chart
from minimegatron.figures.sequence import open_all_reduce, sequence_regions
from minimegatron.figures.tables import published_table
from minimegatron.figures.timeline import bucket_timeline
from minimegatron.figures.vocabulary import (
    embedding_rows,
    explore_vocabulary,
    loss_numbers,
    vocabulary_cost,
)
from minimegatron.figures.widgets import explore_split
from minimegatron.figures.zero import explore_zero, sharded_step, zero_shards

__all__ = [
    "Picture",
    "activation_bars",
    "all_reduce_times",
    "attention_heads",
    "bucket_timeline",
    "collective",
    "column_row_pair",
    "compare_prediction",
    "course_map",
    "curves",
    "draw_schedule",
    "dropout_masks",
    "embedding_rows",
    "error_feedback",
    "explore_activations",
    "explore_all_reduce",
    "explore_chunks",
    "explore_gelu",
    "explore_loss_scale",
    "explore_model",
    "explore_qkv",
    "explore_schedule",
    "explore_split",
    "explore_vocabulary",
    "explore_zero",
    "f_and_g",
    "fp16_line",
    "gelu_of_sum",
    "heads_to_sheets",
    "held_memory",
    "hierarchical_all_reduce",
    "key",
    "loss_numbers",
    "loss_scales",
    "losses",
    "losses_by_message",
    "mesh",
    "mlp_order",
    "model_costs",
    "norm_squares",
    "notebook_and_ranks",
    "number_formats",
    "open_all_reduce",
    "overlap_timeline",
    "pairwise_all_reduce",
    "predicted_and_measured",
    "published_table",
    "qkv_rows",
    "ratios",
    "ring_all_reduce",
    "row_bias",
    "sequence_regions",
    "schedule_chart",
    "sharded_step",
    "split_batch",
    "split_columns",
    "split_rows",
    "stacked_bars",
    "steps_against_batch",
    "times_over_sizes",
    "token_weights",
    "transformer_layer",
    "vocabulary_cost",
    "ways_to_save",
    "zero_shards",
]
