"""How long a schedule takes, where it is idle, and what it holds: computed, nothing runs.

Each rank does its list in order, and an action starts as soon as the rank is free and what it needs
is there. Idle time is told in both ways of the literature: over the ideal time (arXiv:2104.04473,
section 2.2: (p - 1)/m) and over the total (GPipe, arXiv:1811.06965, section 2.3, and
arXiv:2401.10241, section 5.3: (p - 1)/(m + p - 1)).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub

from minimegatron.pipeline_parallel.schedule import Action, Schedule
from minimegatron.ranks.ledger import Ledger

STEP = {"F": 1, "B": -1, "I": -1, "W": 0}  # a result is used this many stages further


@dataclass(frozen=True)
class Timeline:
    """When each rank did what, simulated or measured.

    `starts[rank]` and `ends[rank]` are the times of `schedule.actions[rank]`, one by one.
    """

    schedule: Schedule  # without messages
    starts: list[list[float]]
    ends: list[list[float]]

    @classmethod
    def measured(cls, schedule: Schedule, ledgers: Sequence[Ledger]) -> Timeline:
        """What the ranks did, from the ledger that each kept around `run_schedule`."""
        named = [{span.name: span for span in log.spans} for log in ledgers]
        ranks = zip(named, schedule.actions, strict=True)
        spans = [[names[str(action)] for action in actions] for names, actions in ranks]
        zero = min(span.begin for rank in spans for span in rank)
        starts = [[span.begin - zero for span in rank] for rank in spans]
        return cls(schedule, starts, [[span.end - zero for span in rank] for rank in spans])

    @property
    def spans(self) -> list[list[tuple[Action, float, float]]]:
        """For each rank (action, start, end), in order."""
        ranks = zip(self.schedule.actions, self.starts, self.ends, strict=True)
        return [list(zip(*rank, strict=True)) for rank in ranks]

    @property
    def total_time(self) -> float:
        """From the first start to the last end."""
        return max(ends[-1] for ends in self.ends) - min(starts[0] for starts in self.starts)

    @property
    def longest_rank(self) -> float:
        """The longest time from a rank's own first start to its last end.

        It is what a step costs where each rank takes its optimizer step at once, without waiting
        for the others (arXiv:2401.10241, section 4; the cost in its bubble rate, section 5.3).
        """
        return max(e[-1] - s[0] for s, e in zip(self.starts, self.ends, strict=True))

    @property
    def ideal_time(self) -> float:
        """The work of the busiest rank."""
        return max(sum(map(sub, e, s)) for s, e in zip(self.starts, self.ends, strict=True))

    def bubble(self, of: str = "ideal", ranks_meet: bool = True) -> float:
        """The time beyond the ideal, as a fraction of the `of="ideal"` or the `of="total"` time.

        `ranks_meet=False`: the ranks need not end a step together; its cost is `longest_rank`.
        """
        cost = self.total_time if ranks_meet else self.longest_rank
        if of not in ("ideal", "total"):
            raise ValueError(f'the bubble is a fraction of="ideal" or of="total", not {of!r}')
        return (cost - self.ideal_time) / (self.ideal_time if of == "ideal" else cost)

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
    schedule, stages = schedule.without_messages(), schedule.p * schedule.v
    costs: dict[str, list[float]] = {}
    for kind, cost in (("F", forward), ("I", input_grad), ("W", weight_grad)):
        costs[kind] = list(cost) if isinstance(cost, Sequence) else [cost / schedule.v] * stages
        if len(costs[kind]) != stages or min(*costs[kind], comm, link) < 0:
            raise ValueError(f"a cost is one number, or {stages} (one a stage), and never negative")
    costs["B"] = [i + w for i, w in zip(costs["I"], costs["W"], strict=True)]
    stage_of = {schedule.place(stage): stage for stage in range(stages)}
    owner = [rank for rank, _ in stage_of]
    at_once: list[float | None] = [0.0] * schedule.m  # for the ends of the pipeline, and for W
    # (step, stage) -> for each micro-batch, when the input from the stage a step before is there
    arrivals: dict[tuple[int, int], list[float | None]] = {
        (step, stage): [None] * schedule.m
        for step in (1, -1)
        for stage in range(stages)
        if 0 <= stage - step < stages
    }
    timeline = Timeline(schedule, [[] for _ in schedule.actions], [[] for _ in schedule.actions])
    link_free: dict[tuple[int, int], float] = defaultdict(float)
    done = -1
    while done != (done := sum(map(len, timeline.ends))):
        for rank, actions in enumerate(schedule.actions):
            starts, ends = timeline.starts[rank], timeline.ends[rank]
            now = ends[-1] if ends else 0.0
            while len(ends) < len(actions):
                kind, n, chunk = actions[len(ends)]
                step, stage = STEP[kind], stage_of[rank, chunk]
                ready = arrivals.get((step, stage), at_once)[n]
                if ready is None:
                    break
                start = max(ready, now)
                now = start + costs[kind][stage]
                starts.append(start)
                ends.append(now)
                if target := arrivals.get((step, stage + step)):
                    target[n], way = now, (rank, owner[stage + step])
                    if way[1] != rank:
                        link_free[way] = max(now, link_free[way]) + link
                        target[n] = link_free[way] + comm
    if done < sum(map(len, schedule.actions)):
        schedule.validate()  # says who waits for whom
    return timeline
