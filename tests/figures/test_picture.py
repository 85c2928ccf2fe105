from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import matplotlib as mpl
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from minimegatron import figures
from minimegatron.figures import picture as picture_module
from minimegatron.figures.numbers import FORMATS
from minimegatron.figures.overlap import chunks_modelled
from minimegatron.figures.picture import Picture

MASK = torch.eye(8) == 1
BARS = {"tp = 1": (1000, 1000), "tp = 4": (250, 1_234_567)}
RATIO = {"lower": 0.02, "median": 0.5, "upper": 0.9, "expected": 1.0}

OPS = ("broadcast", "all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send", "barrier")
SECONDS = {64: 1e-4, 1 << 12: 2e-4, 1 << 22: 5e-3}
STEPS = {2**k: max(20, 1500 // 2**k) for k in range(11)}
EVENTS = [*(("gradient", layer) for layer in range(5, -1, -1)), *(("start", i) for i in range(3))]
SPLITS, RUN = ("tp=1", "tp=2", "tp=4", "dp=2"), [7 - step / 100 for step in range(200)]
ZERO = {
    "plain dp": {"parameters": 15.0, "gradients": 15.0, "optimizer": 90.0},
    "ZeRO-1": {"parameters": 15.0, "gradients": 15.0, "optimizer": 1.4},
    "ZeRO-3": {"parameters": 0.23, "gradients": 0.23, "optimizer": 1.4},
}

EVERY_PICTURE: dict[str, Callable[[], Picture]] = {
    **{f"split_columns {tp}": lambda tp=tp: figures.split_columns(tp) for tp in (1, 2, 4, 8)},
    **{f"split_rows {tp}": lambda tp=tp: figures.split_rows(tp) for tp in (1, 2, 4, 8)},
    **{f"row_bias {tp}": lambda tp=tp: figures.row_bias(tp) for tp in range(1, 5)},
    **{f"ring_all_reduce {tp}": lambda tp=tp: figures.ring_all_reduce(tp) for tp in (2, 3, 4)},
    **{f"f_and_g {tp}": lambda tp=tp: figures.f_and_g(tp) for tp in (2, 4)},
    **{f"pair {tp}": lambda tp=tp: figures.column_row_pair(tp, True) for tp in (2, 4)},
    **{f"attention_heads {tp}": lambda tp=tp: figures.attention_heads(tp) for tp in (2, 4)},
    **{f"qkv_rows {tp}": lambda tp=tp: figures.qkv_rows(tp) for tp in (1, 2, 4)},
    **{f"heads_to_sheets {tp}": lambda tp=tp: figures.heads_to_sheets(tp) for tp in (2, 4)},
    "pair, forward": lambda: figures.column_row_pair(),
    **{
        f"mlp {order} {tp}": lambda order=order, tp=tp: figures.mlp_order(order, tp)
        for order in ("column-row", "column-column", "row-row", "row-column")
        for tp in (2, 4)
    },
    **{f"gelu {a} {b}": lambda a=a, b=b: figures.gelu_of_sum(a, b) for a, b in ((4, -4), (-4, -4))},
    **{
        f"layer {tp} {norm} {drop}": lambda tp=tp, norm=norm, drop=drop: figures.transformer_layer(
            tp, norm, drop
        )
        for tp in (2, 4)
        for norm in ("pre", "post")
        for drop in (False, True)
    },
    "masks": lambda: figures.dropout_masks("Masks", {"one": [MASK, MASK], "two": [MASK, ~MASK]}),
    "curves": lambda: figures.curves("Loss", {"with f": [3.5, 0.4], "f missing": [3.5, 0.5]}),
    **{f"notebook {n}": lambda n=n: figures.notebook_and_ranks(n) for n in (1, 4)},
    **{f"collective {op}": lambda op=op: figures.collective(op) for op in OPS},
    **{f"pairwise {tp}": lambda tp=tp: figures.pairwise_all_reduce(tp) for tp in (2, 4)},
    "times": lambda: figures.times_over_sizes(
        "Four ranks", {"model": SECONDS, "ring": SECONDS}, {"ring": SECONDS, "gloo's own": SECONDS}
    ),
    **{f"model {n}": lambda n=n: figures.all_reduce_times(200, 0.1, n) for n in (2, 64)},
    **{f"chunks {k}": lambda k=k: chunks_modelled(5, 0.1, k) for k in (2, 4, 16)},
    "ratios": lambda: figures.ratios("Worth", {"one buffer for 52 tensors, slow network": RATIO}),
    "ratios, far": lambda: figures.ratios("Worth", {"a": RATIO, "b": RATIO | {"median": 30}}),
    "chunks, slow": lambda: chunks_modelled(20, 2, 8),
    **{f"norm_squares {tp}": lambda tp=tp: figures.norm_squares(tp) for tp in (2, 3, 4)},
    "losses": lambda: figures.losses("Loss", dict.fromkeys(SPLITS, RUN), ("unigram entropy", 5.9)),
    **{
        f"model_costs {sizes}": lambda sizes=sizes: figures.model_costs(*sizes)
        for sizes in ((1536, 40, 1024, 51200), (256, 1, 131072, 256000), (25600, 128, 128, 256))
    },
    "stacked_bars": lambda: figures.stacked_bars("Bytes", "GB", ZERO),
    "stacked_bars with marks": lambda: figures.stacked_bars(
        "Bytes", "GB", ZERO, {"ZeRO-1": 31.3, "plain dp": ZERO["plain dp"]}, ("one V100", 32)
    ),
    "stacked_bars, eight terms": lambda: figures.stacked_bars(
        "Bytes", "MB", {"a layer": {f"a longer term {i}": 100.0 * i for i in range(8)}}
    ),
    "mesh 2 2": lambda: figures.mesh(2, 2),
    "mesh 4 3": lambda: figures.mesh(4, 3),
    "course_map": lambda: figures.course_map(here=3),
    "key": lambda: figures.key(),
    **{f"split_batch {dp}": lambda dp=dp: figures.split_batch(dp) for dp in (1, 2, 4)},
    **{f"token_weights {c}": lambda c=c: figures.token_weights(c) for c in ((8, 2), (3, 6, 2))},
    "steps_against_batch": lambda: figures.steps_against_batch(STEPS, least=18),
    "bucket_timeline": lambda: figures.bucket_timeline({"filled": EVENTS, "after": EVENTS}),
    **{
        f"embedding_rows {v} {tp}": lambda v=v, tp=tp: figures.embedding_rows(v, tp, v - 1)
        for v, tp in ((12, 4), (10, 4), (16, 2), (16, 4))
    },
    "loss_numbers 2": lambda: figures.loss_numbers((0, 1, 2, 3), 1, 2),
    "loss_numbers 4": lambda: figures.loss_numbers((2, -10, 0.5, 5, 1, 1, 3, -2), 1, 4),
    **{
        f"vocabulary {v} {tp} {m}": lambda v=v, tp=tp, m=m: figures.vocabulary_cost(v, tp, m)
        for v, tp, m in ((30522, 2, 1), (50257, 8, 1024), (256000, 8, 128))
    },
    **{f"open_all_reduce {tp}": lambda tp=tp: figures.open_all_reduce(tp) for tp in (2, 4)},
    **{f"regions {sp}": lambda sp=sp: figures.sequence_regions(sp) for sp in (False, True)},
    **{
        f"zero_shards {s} {dp}": lambda s=s, dp=dp: figures.zero_shards(s, dp)
        for s, dp in ((0, 4), (1, 1), (2, 8), (3, 2))
    },
    **{f"sharded_step {dp}": lambda dp=dp: figures.sharded_step(dp) for dp in (2, 4)},
    "number_formats": lambda: figures.number_formats(*FORMATS),
    "fp16_line": lambda: figures.fp16_line(
        "Gradients", {f"a longer name {i}": torch.ones(9) * 2.0 ** (20 * i - 60) for i in range(4)}
    ),
    "loss_scales": lambda: figures.loss_scales(
        "Scales", {name: [2.0**k for k in range(32, 0, -1)] for name in "abcd"}, range(31)
    ),
    "loss_scales, quiet": lambda: figures.loss_scales("Scale", {"one": [65536.0] * 9}, []),
    **{f"ways {w}": lambda w=w: figures.ways_to_save(*w) for w in ((512, 1), (32768, 32, "today"))},
    "held_memory": lambda: figures.held_memory(
        "Held", "kB", {f"a long name {i}": ([1, 9 - i, 2512, 3, 0], 3) for i in range(4)}
    ),
    "hierarchical": lambda: figures.hierarchical_all_reduce(),
    "hierarchical, counted": lambda: figures.hierarchical_all_reduce({"inside": 9e8, "across": 1}),
    **{f"feedback {n}": lambda n=n: figures.error_feedback([(4, 3, 2, 1)] * n) for n in (1, 5)},
    "losses_by_message": lambda: figures.losses_by_message(
        "Loss after 400 steps", {"none": (1, 4.5, None), "1-bit": (22.4, 4.67, 4.77)}
    ),
    "predicted_and_measured": lambda: figures.predicted_and_measured("Held", BARS, "bytes"),
}


@pytest.mark.parametrize("name", EVERY_PICTURE)
def test_a_picture_is_small_readable_and_says_what_it_shows(name: str, drawn: list[Axes]) -> None:
    picture = EVERY_PICTURE[name]()
    assert len(picture.png) < 60_000
    assert picture.width <= 900
    assert picture.alt.endswith(".")
    assert 40 < len(picture.alt) < 800
    axes = drawn[0]
    figure = axes.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    texts = [text for text in axes.texts if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 12
    edge = axes.get_window_extent()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1, f"{text!r} is cut off"
        assert edge.y0 <= box.y0 and box.y1 <= edge.y1, f"{text!r} is cut off"
    for i, (text, box) in enumerate(boxes):
        for other, other_box in boxes[:i]:
            assert not box.padded(-1).overlaps(other_box.padded(-1)), f"{text!r} over {other!r}"


def test_the_same_picture_has_the_same_bytes_whatever_the_reader_set() -> None:
    first = figures.split_rows(4).png
    with mpl.rc_context({"font.size": 30, "font.family": "serif", "figure.facecolor": "black"}):
        assert figures.split_rows(4).png == first


def test_a_png_names_no_program_and_has_two_dots_a_pixel() -> None:
    picture = figures.mesh(2, 2)
    image = Image.open(io.BytesIO(picture.png))
    assert image.info.keys() <= {"dpi"}
    assert image.size == (2 * picture.width, 2 * picture.height)


def test_drawing_leaves_the_readers_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    figures.f_and_g(2)
    assert dict(mpl.rcParams) == before
    code = (
        "import sys; from minimegatron import figures; figures.key(); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_notebook_shows_the_image_and_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[dict[str, str], dict[str, object]]] = []
    monkeypatch.setattr(
        picture_module, "display", lambda data, **options: shown.append((data, options))
    )
    picture = figures.split_columns(2)
    picture._ipython_display_()
    (image, options), (words, _) = shown
    assert image["text/plain"] == picture.alt
    assert options["metadata"]["image/png"]["alt"] == picture.alt  # type: ignore[index]
    assert picture.alt in words["text/markdown"]
    assert "image/png" not in words


def test_html_escapes_the_words() -> None:
    picture = figures.predicted_and_measured('a "b" <c>', {"x": (1, 1)}, "bytes")
    assert 'alt="Pairs of bars, a &quot;b&quot; &lt;c&gt;, predicted' in picture.html()
