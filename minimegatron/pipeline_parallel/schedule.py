"""A schedule: for each rank of a pipeline, the list of what it does, in order.

Plain data, the same for drawing, checking, simulating and running. F is a forward; B a whole
backward; I and W are the backward split into the gradient of the input, for which the stage before
waits, and of the weights, for which nobody waits (arXiv:2401.10241, section 2, where I is called
B). Megatron-LM, core/pipeline_parallel/schedules.py: `forward_step`, `backward_step`.

p ranks hold p * v stages, v of them each: rank r has the stages r, p + r, 2p + r... ("Efficient
Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", arXiv:2104.04473, section
2.2; `virtual_pipeline_model_parallel_size`); V-shaped, the odd chunks run the other way, so that
with v=2 rank 0 has the first and the last stage (ZB-V, arXiv:2401.10241, section 6).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

# The notation of torch.distributed.pipelining: stage, kind, micro-batch.
_CELL = re.compile(r"(\d+)(SEND_F|RECV_F|SEND_B|RECV_B|[FBIW])(\d+)")
FSDP = ("UNSHARD", "RESHARD", "REDUCE_GRAD")  # what torch writes between for sharded stages


class Action(NamedTuple):
    """`kind`: F, B, I, W, SEND_F, RECV_F, SEND_B, RECV_B; `chunk` counts a rank's own stages."""

    kind: str
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}" + (f" of chunk {self.chunk}" if self.chunk else "")


class ScheduleError(ValueError):
    """Cannot run, or would compute the wrong thing: `rank`, `action`, and the broken `rule`."""

    def __init__(self, rank: int, action: Action | str, rule: str) -> None:
        super().__init__(f"rank {rank}, {action}: {rule}")
        self.rank, self.action, self.rule = rank, action, rule


@dataclass(frozen=True)
class Schedule:
    """`actions[rank]` is what a rank does, in order; `m` micro-batches; `v` chunks a rank."""

    actions: list[list[Action]]
    m: int
    v: int = 1
    v_shaped: bool = False

    def __post_init__(self) -> None:
        if min(self.p, self.m, self.v) < 1:
            raise ValueError(f"p={self.p}, m={self.m}, v={self.v}: each is at least 1")

    @property
    def p(self) -> int:
        """The number of ranks."""
        return len(self.actions)

    def stage(self, rank: int, chunk: int) -> int:
        """The global stage, from 0 to p * v - 1, that is this chunk of this rank."""
        return chunk * self.p + (self.p - 1 - rank if self.v_shaped and chunk % 2 else rank)

    def place(self, stage: int) -> tuple[int, int]:
        """The rank and the chunk that a global stage is: `stage` the other way round."""
        chunk, along = divmod(stage, self.p)
        return (self.p - 1 - along if self.v_shaped and chunk % 2 else along), chunk

    def in_flight(self, rank: int) -> list[float]:
        """The micro-batches whose activations the rank holds, after each of its actions.

        From the forward until B, or until W where the backward is split; a chunk counts 1/v.
        """
        change = {"F": 1, "B": -1, "W": -1}
        steps = (change.get(action.kind, 0) for action in self.actions[rank])
        return [held / self.v for held in accumulate(steps)]

    def without_messages(self) -> Schedule:
        """The computations alone."""
        rows = [[a for a in actions if "_" not in a.kind] for actions in self.actions]
        return replace(self, actions=rows)

    def with_messages(self) -> Schedule:
        """The same computations with SEND_F, RECV_F, SEND_B, RECV_B between them; messages.py."""
        from minimegatron.pipeline_parallel.messages import with_messages

        return with_messages(self)

    def validate(self, sends: str = "posted", max_in_flight: float | None = None) -> None:
        """Raises ScheduleError with rank, action and the rule that is broken; validate.py."""
        from minimegatron.pipeline_parallel.validate import validate

        validate(self, sends, max_in_flight)

    def to_csv(self) -> str:
        """One row a rank, a cell an action, in torch's notation: 0F0, 3B1, 1SEND_F2."""
        rows = [
            ",".join(f"{self.stage(rank, chunk)}{kind}{n}" for kind, n, chunk in actions)
            for rank, actions in enumerate(self.actions)
        ]
        return "\n".join(rows) + "\n"

    @classmethod
    def from_csv(cls, text: str, m: int | None = None) -> Schedule:
        """The schedule of such rows; `m` is, unless given, one more than the last micro-batch.

        Empty cells (idle) and those of FSDP (0UNSHARD) are left out.
        Raises ScheduleError for a cell that is none, and for one whose stage lies on another rank.
        """
        rows = [row.split(",") for row in text.strip().splitlines()]
        found = []
        for rank, cell in ((rank, cell.strip()) for rank, row in enumerate(rows) for cell in row):
            if match := _CELL.fullmatch(cell):
                found.append((rank, int(match[1]), match[2], int(match[3])))
            elif cell and not cell.endswith(FSDP):
                raise ScheduleError(rank, cell, "a cell is like 0F0, 3B1, 1I2 or 1SEND_F2")
        p, last = len(rows), max((stage for _, stage, _, _ in found), default=0)
        m = m or 1 + max((n for *_, n in found), default=0)
        v_shaped = any(stage % p != rank for rank, stage, _, _ in found)
        schedule = cls([[] for _ in rows], m, last // max(p, 1) + 1, v_shaped)
        for rank, stage, kind, n in found:
            owner, chunk = schedule.place(stage)
            if owner != rank:
                raise ScheduleError(rank, f"{stage}{kind}{n}", f"stage {stage} is rank {owner}'s")
            schedule.actions[rank].append(Action(kind, n, chunk))
        return schedule
