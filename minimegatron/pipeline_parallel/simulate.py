"""How long a schedule takes, where it is idle, and what it holds: computed, nothing runs.

Each rank does its list in order, and an action starts as soon as the rank is free and what it needs
is there. Idle time is told in both ways of the literature: over the ideal time (arXiv:2104.04473,
section 2.2: (p - 1)/m) and over the total (GPipe, arXiv:1811.06965, section 2.3, and
arXiv:2401.10241, section 5.3: (p - 1)/(m + p - 1)).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from minimegatron.pipeline_parallel.schedule import Action, Schedule

STEP = {"F": 1, "B": -1, "I": -1, "W": 0}  # a result is used this many stages further


@dataclass(frozen=True)
class Timeline:
    """When each rank did what, simulated or measured: `spans[rank]` holds (action, start, end)."""

    schedule: Schedule
    spans: list[list[tuple[Action, float, float]]]

    @property
    def total_time(self) -> float:
        """From the first start to the last end."""
        starts, ends = zip(*((spans[0][1], spans[-1][2]) for spans in self.spans), strict=True)
        return max(ends) - min(starts)

    @property
    def longest_rank(self) -> float:
        """The longest time from a rank's own first start to its last end.

        It is what a step costs where each rank takes its optimizer step at once, without waiting
        for the others (arXiv:2401.10241, section 4; the cost in its bubble rate, section 5.3).
        """
        return max(spans[-1][2] - spans[0][1] for spans in self.spans)

    @property
    def ideal_time(self) -> float:
        """The work of the busiest rank."""
        return max(sum(end - start for _, start, end in spans) for spans in self.spans)

    def bubble(self, of: str = "ideal", ranks_meet: bool = True) -> float:
        """The time beyond the ideal, as a fraction of the `of="ideal"` or the `of="total"` time.

        `ranks_meet=False`: the ranks need not end a step together; its cost is `longest_rank`.
        """
        cost = self.total_time if ranks_meet else self.longest_rank
        return (cost - self.ideal_time) / {"ideal": self.ideal_time, "total": cost}[of]

    @property
    def peak_in_flight(self) -> list[float]:
        """For each rank the most micro-batches whose activations it holds, a chunk counting 1/v."""
        return [max(self.schedule.in_flight(rank)) for rank in range(self.schedule.p)]


def simulate(
    schedule: Schedule,
    forward: float | Sequence[float] = 1.0,
    input_grad: float | Sequence[float] = 1.0,
    weight_grad: float | Sequence[float] = 1.0,
    comm: float = 0.0,
    link: float = 0.0,
) -> Timeline:
    """The times of a schedule. Raises ScheduleError where ranks wait for each other for ever.

    Args:
        forward, input_grad, weight_grad: the time of one micro-batch through all of a rank's
            layers, of which a chunk takes 1/v; or, for unequal stages, a list with the time of
            each of the p * v global stages. B takes input_grad + weight_grad.
        comm: the time from the end of a computation until a stage on another rank has its result.
            It occupies neither side.
        link: the time that a message holds the way from its rank to the other before that; the
            next message waits. Bytes over bandwidth, where `comm` is the latency.
    """
    stages = schedule.p * schedule.v
    costs: dict[str, list[float]] = {}
    for kind, cost in (("F", forward), ("I", input_grad), ("W", weight_grad)):
        costs[kind] = list(cost) if isinstance(cost, Sequence) else [cost / schedule.v] * stages
        if len(costs[kind]) != stages or min(*costs[kind], comm, link) < 0:
            raise ValueError(f"a cost is one number, or {stages} (one a stage), and never negative")
    costs["B"] = [i + w for i, w in zip(costs["I"], costs["W"], strict=True)]
    owner = [schedule.place(stage)[0] for stage in range(stages)]
    todo = [deque(a for a in actions if a.kind in STEP) for actions in schedule.actions]
    spans: list[list[tuple[Action, float, float]]] = [[] for _ in todo]
    there: dict[tuple[int, int, int], float] = {}  # step, stage, micro-batch -> when to be used
    link_free: dict[tuple[int, int], float] = defaultdict(float)
    left = -1
    while left != (left := sum(map(len, todo))):
        for rank, actions in enumerate(todo):
            now = spans[rank][-1][2] if spans[rank] else 0.0
            while actions:
                kind, n, chunk = actions[0]
                step, stage = STEP[kind], schedule.stage(rank, chunk)
                ready = 0.0
                if step and 0 <= stage - step < stages:
                    ready = there.pop((step, stage, n), -1.0)
                    if ready < 0:
                        break
                start = max(ready, now)
                now = start + costs[kind][stage]
                spans[rank].append((actions.popleft(), start, now))
                if step and 0 <= stage + step < stages:
                    peer, arrival = owner[stage + step], now
                    if peer != rank:
                        arrival = max(now, link_free[rank, peer]) + link
                        link_free[rank, peer] = arrival
                        arrival += comm
                    there[step, stage + step, n] = arrival
    if left:
        schedule.validate()
    return Timeline(schedule, spans)
