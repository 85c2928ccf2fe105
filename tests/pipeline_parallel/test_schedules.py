"""The orders themselves, against the papers' figures and torch.distributed.pipelining."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import schedules as torch_schedules

import minimegatron as mm

# arXiv:2401.10241, figures 3 and 8: p=4, m=8, the micro-batches of each device, from 1.
FIGURE_3_ZB_H1 = """
1 2 3 4 1 1 5 2 2 6 3 3 7 4 4 8 5 5 6 6 7 7 8 8
1 2 3 1 4 2 1 5 3 2 6 4 3 7 5 4 8 6 5 7 6 8 7 8
1 2 1 3 2 4 3 1 5 4 2 6 5 3 7 6 4 8 7 5 8 6 7 8
1 1 2 2 3 3 4 4 1 5 5 2 6 6 3 7 7 4 8 8 5 6 7 8
"""
FIGURE_3_ZB_H2 = """
1 2 3 4 5 6 7 1 1 8 2 2 3 3 4 4 5 5 6 6 7 7 8 8
1 2 3 4 5 1 6 2 7 3 1 8 4 2 5 3 6 4 7 5 8 6 7 8
1 2 3 1 4 2 5 3 6 4 7 5 1 8 6 2 7 3 8 4 5 6 7 8
1 1 2 2 3 3 4 4 5 5 6 6 7 7 1 8 8 2 3 4 5 6 7 8
"""
FIGURE_8_ZB_V = """
1 2 3 4 5 6 7 1 1 1 2 2 2 3 3 3 4 4 4 8 1 1 5 5 5 2 2 6 6 6 3 3 7 7 7 4 4 8 8 8 5 5 6 6 7 7 8 8
1 2 3 4 5 1 6 2 1 1 3 2 2 4 3 3 7 1 1 5 4 4 8 2 2 6 5 5 3 3 7 6 6 4 4 8 7 7 5 8 6 5 7 8 8 6 7 8
1 2 3 1 4 2 5 3 1 1 4 2 2 6 1 1 5 3 3 7 2 2 6 4 4 8 3 3 7 5 5 4 4 8 6 6 5 7 6 8 7 5 8 7 6 8 7 8
1 1 2 2 3 3 4 4 1 1 5 1 1 5 2 2 6 2 2 6 3 3 7 3 3 7 4 4 8 4 4 8 5 5 5 6 6 7 7 8 8 5 6 6 7 7 8 8
"""


@pytest.mark.parametrize(
    "made, figure",
    [
        (mm.zb_h1(4, 8), FIGURE_3_ZB_H1),
        (mm.zb_h2(4, 8), FIGURE_3_ZB_H2),
        (mm.zbv(4, 8), FIGURE_8_ZB_V),
    ],
    ids=["ZB-H1", "ZB-H2", "ZB-V"],
)
def test_zero_bubble_schedules_are_those_of_the_paper_s_figures(
    made: mm.Schedule, figure: str
) -> None:
    rows = [[int(number) - 1 for number in row.split()] for row in figure.strip().splitlines()]
    assert [[action.microbatch for action in actions] for actions in made.actions] == rows


def test_1f1b_alternates_after_the_forwards_that_fill_the_pipeline() -> None:
    for p, m in ((1, 3), (4, 2), (4, 4), (4, 9)):
        for rank, actions in enumerate(mm.one_f_one_b(p, m).actions):
            kinds = "".join(action.kind for action in actions)
            warmup = min(p - rank - 1, m)  # Megatron-LM's num_warmup_microbatches
            assert kinds == "F" * warmup + "FB" * (m - warmup) + "B" * warmup


def test_interleaved_warms_up_as_megatron_does() -> None:
    for p, m, v in ((2, 2, 2), (4, 8, 2), (4, 12, 3)):
        for rank, actions in enumerate(mm.interleaved(p, m, v).actions):
            kinds = "".join(action.kind for action in actions)
            warmup = min((p - rank - 1) * 2 + (v - 1) * p, m * v)
            assert kinds.index("B") == warmup + (warmup < m * v)


def torch_runtime(made: mm.Schedule, rank: int = 0, kind: Any = None, **options: Any) -> Any:
    """A schedule object of torch, with stages that hold nothing."""
    stages = [
        SimpleNamespace(
            group_size=made.p,
            group_rank=rank,
            num_stages=made.p * made.v,
            stage_index=made.stage(rank, chunk),
            submod=None,
            is_first=False,
            is_last=False,
            has_backward=True,
        )
        for chunk in range(made.v)
    ]
    return (kind or torch_schedules._PipelineScheduleRuntime)(stages, made.m, **options)


def as_actions(made: mm.Schedule, order: dict[int, list[Any]]) -> list[list[mm.Action]]:
    """torch's actions as ours; idle steps, and REDUCE_GRAD and its like, are left out."""
    kinds = ("F", "B", "I", "W", "SEND_F", "RECV_F", "SEND_B", "RECV_B")
    return [
        [
            mm.Action(each.computation_type.value, each.microbatch_index, place[1])
            for each in order[rank]
            if each and each.computation_type.value in kinds
            for place in [made.place(each.stage_index)]
            if place[0] == rank or pytest.fail(f"{each} on rank {rank}")
        ]
        for rank in range(made.p)
    ]


@pytest.mark.parametrize(
    "p, m, v", [(1, 2, 2), (2, 2, 2), (2, 8, 3), (4, 4, 2), (4, 8, 2), (8, 16, 4)]
)
def test_interleaved_is_torch_s_order(p: int, m: int, v: int) -> None:
    ours = mm.interleaved(p, m, v)
    theirs = torch_runtime(ours, kind=torch_schedules.ScheduleInterleaved1F1B)
    assert as_actions(ours, theirs.pipeline_order) == ours.actions


@pytest.mark.parametrize("p, m", [(2, 3), (2, 8), (4, 2), (4, 7), (4, 8), (8, 16)])
def test_zbv_is_torch_s_order_but_for_the_last_ws(p: int, m: int) -> None:
    """At the end torch leaves the Ws of chunk 1 for last; the paper's figure keeps their order."""
    ours = mm.zbv(p, m)
    theirs = torch_runtime(ours, kind=torch_schedules.ScheduleZBVZeroBubble)
    for mine, other in zip(ours.actions, as_actions(ours, theirs.pipeline_order), strict=True):
        assert [a for a in mine if a.kind != "W"] == [a for a in other if a.kind != "W"]
        assert sorted(mine) == sorted(other)


MANY = [
    mm.gpipe(3, 4),
    mm.one_f_one_b(4, 6),
    mm.interleaved(2, 4, 2),
    mm.interleaved(4, 8, 2),
    mm.zb_h1(4, 6),
    mm.zb_h2(4, 9),
    mm.zbv(4, 8),
]
NAMES = ["gpipe", "1f1b", "interleaved-2", "interleaved-4", "zb_h1", "zb_h2", "zbv"]


@pytest.mark.parametrize("made", MANY, ids=NAMES)
def test_torch_s_loader_reads_our_notation_and_its_dry_run_finishes(
    made: mm.Schedule, tmp_path: Path
) -> None:
    (tmp_path / "bare.csv").write_text(made.to_csv())
    (tmp_path / "full.csv").write_text(made.with_messages().to_csv())
    bare, full = torch_runtime(made), torch_runtime(made)
    bare._load_csv(str(tmp_path / "bare.csv"))
    full._load_csv(str(tmp_path / "full.csv"), format="compute_comms")
    assert as_actions(made, bare.pipeline_order) == made.actions
    assert as_actions(made, full.pipeline_order_with_comms) == made.with_messages().actions
    # The messages that torch itself puts in are the same ones.
    theirs = as_actions(made, bare.pipeline_order_with_comms)
    for ours, other in zip(made.with_messages().actions, theirs, strict=True):
        assert sorted(ours) == sorted(other)
    stage_to_rank = bare.stage_index_to_group_rank
    torch_schedules._simulate_comms_compute(
        full.pipeline_order_with_comms, stage_to_rank.__getitem__, made.p * made.v
    )


@pytest.mark.parametrize("made", MANY, ids=NAMES)
def test_what_torch_writes_is_read_and_valid(made: mm.Schedule, tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text(made.to_csv())
    runtime = torch_runtime(made)
    runtime._load_csv(str(tmp_path / "bare.csv"))
    runtime._dump_csv(str(tmp_path / "full.csv"))  # with UNSHARD, RESHARD, REDUCE_GRAD
    text = (tmp_path / "full.csv").read_text()
    assert "UNSHARD" in text and "REDUCE_GRAD" in text
    mm.Schedule.from_csv(text).validate()


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="a bug of torch 2.13")
def test_torch_s_gpipe_is_ours_and_its_1f1b_forgets_a_forward_of_the_last_rank() -> None:
    """torch 2.13's Schedule1F1B tells the last rank's order wrong; ours is not taken from it."""
    for p, m in ((2, 4), (4, 8)):
        stub = SimpleNamespace(pp_group_size=p, _num_stages=p, _n_microbatches=m)
        gpipe = torch_schedules.ScheduleGPipe._get_pipeline_order(stub)
        assert as_actions(mm.gpipe(p, m), gpipe) == mm.gpipe(p, m).actions
        theirs = as_actions(
            mm.one_f_one_b(p, m), torch_schedules.Schedule1F1B._get_pipeline_order(stub)
        )
        assert theirs[:-1] == mm.one_f_one_b(p, m).actions[:-1]
        with pytest.raises(mm.ScheduleError, match=f"rank {p - 1}, F0: is missing"):
            mm.Schedule(theirs, m).validate()
