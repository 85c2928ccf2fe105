"""The messages of a schedule: who sends what to whom, and where sends and receives stand.

A forward sends activations to the next stage (SEND_F, there RECV_F), a backward gradients to the
stage before (SEND_B, RECV_B). A result is sent as soon as it is computed, and received right before
it is used, or earlier where a later message of the same peer is used first: the two ends of a pair
of ranks keep the same order, for NCCL tells messages apart by nothing else. Megatron-LM,
core/pipeline_parallel/p2p_communication.py: `send_forward`, `recv_forward`, `send_backward`,
`recv_backward`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

from minimegatron.pipeline_parallel.schedule import Action, Schedule

WAY = {"F": "F", "B": "B", "I": "B"}  # where the result of a computation goes; of W, nowhere
End = tuple[int, Action]  # of a message: a rank, and its SEND or RECV


def messages(schedule: Schedule) -> dict[End, End]:
    """(sender, SEND) -> (receiver, RECV) of every result that another rank uses, as computed."""
    found = {}
    for rank, actions in enumerate(schedule.actions):
        for kind, n, chunk in (action for action in actions if action.kind in WAY):
            stage = schedule.stage(rank, chunk) + (1 if kind == "F" else -1)
            peer, there = schedule.place(stage)
            if 0 <= stage < schedule.p * schedule.v and peer != rank:
                send, receive = f"SEND_{WAY[kind]}", f"RECV_{WAY[kind]}"
                found[rank, Action(send, n, chunk)] = peer, Action(receive, n, there)
    return found


def with_messages(schedule: Schedule) -> Schedule:
    """The schedule with a SEND after each result that travels, and its RECV at the other rank."""
    found = messages(schedule)
    coming: dict[End, deque[Action]] = {}  # (receiver, RECV) -> all from that sender, as sent
    queues: dict[tuple[int, int], deque[Action]] = defaultdict(deque)
    for (rank, _), (peer, receive) in found.items():
        coming[peer, receive] = queues[rank, peer]
        queues[rank, peer].append(receive)
    rows: list[list[Action]] = []
    for rank, actions in enumerate(schedule.actions):
        row: dict[Action, None] = {}  # in order, and quick to search
        for action in actions:
            send, receive = (action._replace(kind=f"{verb}_{WAY.get(action.kind)}")
                             for verb in ("SEND", "RECV"))  # fmt: skip
            while receive not in row and (queue := coming.get((rank, receive))):
                row[queue.popleft()] = None
            row |= dict.fromkeys([action, send] if (rank, send) in found else [action])
        rows.append(list(row))
    return replace(schedule, actions=rows)
