from __future__ import annotations

import base64
import time

from minimegatron import figures
from minimegatron.figures.widgets import split_matrix

VIEW = "application/vnd.jupyter.widget-view+json"


def test_moving_a_control_draws_the_picture_again_in_time() -> None:
    explorer = figures.explore_split()
    seconds = []
    for tp, cut in ((8, "rows"), (4, "rows"), (4, "columns"), (1, "columns"), (8, "columns")):
        explorer.controls["cut"].value = cut
        start = time.process_time()
        explorer.controls["tp"].value = tp
        seconds.append(time.process_time() - start)
        assert explorer.picture.value == split_matrix(tp, cut).html()
    assert sorted(seconds)[2] < 0.2


def test_without_a_kernel_the_first_picture_remains() -> None:
    explorer = figures.explore_split()
    data, metadata = explorer._repr_mimebundle_()
    first = split_matrix(tp=2, cut="columns")
    assert VIEW in data
    assert base64.b64decode(data["image/png"]) == first.png
    assert data["text/plain"] == metadata["image/png"]["alt"] == first.alt
    assert "model_id" not in data["text/plain"]
