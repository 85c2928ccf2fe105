"""Gradient buckets beside the backward pass that fills them, in the order in which things happened.

"PyTorch Distributed", arXiv:2006.15704, figure 4; Megatron-LM's `--overlap-grad-reduce`. Only the
order is measured, so that the picture is the same on every machine: each gradient is drawn equally
wide, and a bucket's all-reduce as wide as the gradients in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minimegatron.figures.picture import Picture
from minimegatron.figures.style import HATCHES, INK, NORMAL, SMALL, canvas, indexed, patch, words

Events = Sequence[tuple[str, int]]  # ("gradient", layer) made, or ("start", bucket) sent, in order

LEFT, LANE, PANEL = 120, 50, 190  # pixels


def bucket_timeline(runs: Mapping[str, Events]) -> Picture:
    """One panel for each run: the gradients as backward makes them, and below the all-reduces.

    A bucket holds an equal share of the gradients, in the order in which they are made. Raises
    ValueError where buckets do not divide the gradients, or come in another order than 0, 1, 2...
    """
    drawn = {title: _positions(events) for title, events in runs.items()}
    ends = [starts[-1] + share for _, starts, share in drawn.values()]
    with canvas(900, PANEL * len(runs) + 45) as axes:
        slot = (880 - LEFT) / max(ends)
        told = []
        for row, (title, (layers, starts, share)) in enumerate(drawn.items()):
            top = 20 + PANEL * row
            words(axes, 20, top, title, align="left", bold=True)
            for lane, name in enumerate(("backward", "all-reduce")):
                y = top + 24 + (LANE + 18) * lane
                words(axes, 20, y + LANE / 2, name, align="left", size=SMALL)
            for i, layer in enumerate(layers):
                left = LEFT + slot * i
                label = indexed("dW", layer)
                patch(axes, left, top + 24, slot, LANE, label, hatch=HATCHES["B"], size=SMALL)
            for bucket, start in enumerate(starts):
                left, y = LEFT + slot * start, top + 42 + LANE
                patch(axes, left, y, slot * share, LANE, f"bucket {bucket}", size=NORMAL)
            over = LEFT + slot * len(layers)
            axes.plot([over, over], [top + 14, top + 50 + 2 * LANE], color=INK, linewidth=1.5)
            words(axes, over + 6, top + 12, "backward is over", align="left", size=SMALL)
            early = sum(start < len(layers) for start in starts)
            told.append(f"{title}: {early} of {len(starts)} all-reduces start before the end")
        below = "From left to right: the order of events. The widths are not times."
        words(axes, 450, PANEL * len(runs) + 25, below, size=SMALL)
        return Picture(
            axes,
            "Timelines of a backward pass that makes the layers' gradients one after another, "
            f"from the last layer to the first. {'; '.join(told)} of backward.",
        )


def _positions(events: Events) -> tuple[list[int], list[int], int]:
    """The layers as their gradients came, the slot where each bucket's bar begins, its slots."""
    layers = [number for kind, number in events if kind == "gradient"]
    buckets = [number for kind, number in events if kind == "start"]
    if not buckets or buckets != list(range(len(buckets))) or len(layers) % len(buckets):
        raise ValueError(f"{len(layers)} gradients and the buckets {buckets} make no timeline")
    share, made, free, starts = len(layers) // len(buckets), 0, 0, []
    for kind, _ in events:
        if kind == "gradient":
            made += 1
        else:
            starts.append(max(made, free))  # one network: a bucket waits for the one before
            free = starts[-1] + share
    return layers, starts, share
