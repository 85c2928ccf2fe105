"""What would make a schedule deadlock, or compute the wrong thing, found before it runs.

Every forward and every backward is there once; each action comes after what it needs on its own
rank; the messages of two ranks are in the same order on both sides; no ranks wait for each other in
a circle. With "posted" sends (the executor's: receives are posted ahead, sends go out in the
background) a rank waits only for what it computes with. With "blocking" sends both ends wait until
the other is there: plain 1F1B then stops, the reason why Megatron-LM fuses a send with a receive
(`send_forward_recv_backward`, `send_backward_recv_forward`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import groupby, pairwise

from minimegatron.pipeline_parallel.messages import WAY, End, messages
from minimegatron.pipeline_parallel.schedule import Action, Schedule, ScheduleError

Wires = dict[End, End]
AFTER = {"B": "F", "I": "F", "W": "I", "SEND_F": "F", "SEND_B": "BI"}  # on the same chunk


def validate(schedule: Schedule, sends: str = "posted", max_in_flight: float | None = None) -> None:
    """Raises ScheduleError for the first rule that is broken: rank, action, rule.

    Args:
        sends: "posted" or "blocking". A schedule without messages is given them first.
        max_in_flight: micro-batches whose activations a rank may hold, a chunk counting 1/v.
    """
    if sends not in ("posted", "blocking"):
        raise ValueError(f'sends is "posted" or "blocking", not {sends!r}')
    bare = schedule.without_messages()
    places = [(n, chunk) for n in range(schedule.m) for chunk in range(schedule.v)]
    for rank, actions in enumerate(bare.actions):
        split = {action[1:] for action in actions if action.kind in ("I", "W")}
        kinds = ((place, "FIW" if place in split else "FB") for place in places)
        _check_same(rank, actions, [Action(k, *place) for place, each in kinds for k in each])
    full = bare.with_messages()
    wires = messages(full)
    if bare != schedule:
        for rank, actions in enumerate(schedule.actions):
            _check_same(rank, actions, full.actions[rank])
        full = schedule
    _check_order(full, wires)
    for rank, actions in enumerate(full.actions):
        for action, held in zip(actions, full.in_flight(rank), strict=True):
            if max_in_flight is not None and held > max_in_flight:
                rule = f"holds {held:g} micro-batches in flight, the limit is {max_in_flight:g}"
                raise ScheduleError(rank, action, rule)
    _check_progress(full, wires, sends)


def _check_same(rank: int, actions: list[Action], wanted: list[Action]) -> None:
    """Nothing is missing, nothing twice or foreign."""
    have, want = Counter(actions), Counter(wanted)
    for wrong, rule in ((want - have, "is missing"), (have - want, "is one too many")):
        for action in wrong:
            raise ScheduleError(rank, action, rule)


def _needs(schedule: Schedule, rank: int, action: Action, senders: Wires) -> Iterator[list[Action]]:
    """What an action comes after on its rank: of each list, any one."""
    kind, n, chunk = action
    if kind in AFTER:
        yield [Action(before, n, chunk) for before in AFTER[kind]]
    if kind in WAY:
        stage = schedule.stage(rank, chunk) + (-1 if kind == "F" else 1)
        receive = Action(f"RECV_{WAY[kind]}", n, chunk)
        if (rank, receive) in senders:
            yield [receive]
        elif 0 <= stage < schedule.p * schedule.v:
            before = "F" if kind == "F" else "BI"
            yield [Action(each, n, schedule.place(stage)[1]) for each in before]


def _check_order(schedule: Schedule, wires: Wires) -> None:
    """Each action after what it needs on its rank; a pair's messages alike at both ends."""
    senders = {receive: send for send, receive in wires.items()}
    place = {(r, a): i for r, actions in enumerate(schedule.actions) for i, a in enumerate(actions)}
    latest: dict[tuple[int, int], End] = {}  # sender, receiver -> the message sent last
    for rank, actions in enumerate(schedule.actions):
        for i, action in enumerate(actions):
            for needed in _needs(schedule, rank, action, senders):
                if all(place.get((rank, each), i) >= i for each in needed):
                    raise ScheduleError(rank, action, f"comes before {needed[0]}, which it needs")
            if there := wires.get((rank, action)):
                before = latest.get((rank, there[0]), there)
                if place[there] < place[before]:
                    rule = f"comes before {before[1]}, which rank {rank} sends first"
                    raise ScheduleError(*there, rule)
                latest[rank, there[0]] = there


def _check_progress(schedule: Schedule, wires: Wires, sends: str) -> None:
    """No circle in what waits for what. The two ends of a message are one node, its RECV."""
    senders = {receive: send for send, receive in wires.items()}
    waits_for: dict[End, set[End]] = defaultdict(set)
    orders: dict[tuple[End, End], tuple[int, Action, Action]] = {}  # nodes -> rank, what it does
    for rank, actions in enumerate(schedule.actions):
        last: list[tuple[End, Action]] = []
        for action in actions:
            if sends == "posted" and (rank, action) in senders:
                continue  # posted ahead: only what computes with it waits
            node = wires.get((rank, action), (rank, action))
            needs = [each for each, *_ in _needs(schedule, rank, action, senders)]
            needs = [each for each in needs if (rank, each) in senders]
            for earlier, name in last + [((rank, each), each) for each in needs]:
                waits_for[node].add(earlier)
                orders[earlier, node] = rank, name, action
            last = [(node, action)]
    try:
        TopologicalSorter(waits_for).prepare()
    except CycleError as error:
        steps = [orders[step] for step in pairwise(error.args[1])]
        while steps[0][0] == steps[-1][0]:  # begin where one rank's part begins
            steps.insert(0, steps.pop())
        runs = [list(run) for _, run in groupby(steps, key=lambda step: step[0])]
        told = [f"rank {run[0][0]} does {run[0][1]} before {run[-1][2]}" for run in runs]
        rule = f"deadlock with {sends} sends: {', '.join(told)}"
        raise ScheduleError(*steps[0][:2], rule) from None
