"""Pictures and sliders of the course: one function per picture, one visual language (style.py).

    from minimegatron import figures
    figures.split_columns(tp=4)

Every function returns a Picture, which shows itself in a notebook and says itself in words.
"""

from minimegatron.figures.course import course_map, key
from minimegatron.figures.curves import curves
from minimegatron.figures.gelu import explore_gelu, gelu_of_sum
from minimegatron.figures.layer import transformer_layer
from minimegatron.figures.masks import dropout_masks
from minimegatron.figures.heads import attention_heads, explore_qkv, heads_to_sheets, qkv_rows
from minimegatron.figures.matmul import row_bias, split_columns, split_rows
from minimegatron.figures.mlp import mlp_order
from minimegatron.figures.operators import f_and_g
from minimegatron.figures.pair import column_row_pair
from minimegatron.figures.picture import Picture
from minimegatron.figures.predict import compare_prediction, predicted_and_measured
from minimegatron.figures.processes import mesh, notebook_and_ranks
from minimegatron.figures.ring import ring_all_reduce
from minimegatron.figures.widgets import explore_split

__all__ = [
    "Picture",
    "column_row_pair",
    "compare_prediction",
    "course_map",
    "curves",
    "dropout_masks",
    "explore_gelu",
    "explore_split",
    "f_and_g",
    "gelu_of_sum",
    "key",
    "mesh",
    "mlp_order",
    "notebook_and_ranks",
    "predicted_and_measured",
    "ring_all_reduce",
    "row_bias",
    "split_columns",
    "split_rows",
    "transformer_layer",
]
