"""Runs a schedule: the very list that was drawn, checked and simulated, on real ranks.

A rank goes through its actions in order. Messages that follow one another are started together, so
that no neighbour waits for another's turn; a result is waited for where it is used. A forward keeps
its input and output until its backward (until I and W, where the backward is split), and no longer.
The loss is the mean over the tokens of all micro-batches. Megatron-LM: `forward_backward_func` in
`megatron/core/pipeline_parallel/schedules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor, nn

from minimegatron.pipeline_parallel.schedule import Action, Schedule
from minimegatron.ranks.collectives import Handle, Message, broadcast, exchange, recv, send
from minimegatron.ranks.ledger import phase, span
from minimegatron.ranks.mesh import Mesh

Batch = tuple[Tensor, Tensor]
Later = list[Callable[[], None]]  # what W does: see tensor_parallel/deferred.py
BLOCKING = {"send": send, "recv": recv}


class Model(Protocol):
    """What this file needs of a model (a GPT): it stands below models/ and imports none."""

    mesh: Mesh
    chunks: int
    tokens_since_finish: int | Tensor

    def stage(self, chunk: int, x: Tensor) -> Tensor: ...
    def modules_of(self, chunk: int) -> Sequence[nn.Module]: ...
    def mean_loss(self, logits: Tensor, targets: Tensor) -> Tensor: ...
    def activations(self, tokens: Tensor) -> Tensor: ...


def run_schedule(
    model: Model, schedule: Schedule, microbatches: Sequence[Batch], *,
    loss_scale: float | Tensor = 1.0, sends: str = "posted", check: bool = True,
) -> Tensor:  # fmt: skip
    """One step through the pipeline: forward and backward of all micro-batches; the mean loss.

    `microbatches` are those of this rank's dp group, (tokens, targets) of (batch, seq) each, the
    same on every stage: the first stage reads tokens, the last targets. Gradients are those of
    `loss_scale` times the loss; `finish_gradients` is next. Under torch.no_grad() only forwards
    run. The loss comes back on every rank.

    Raises ScheduleError, before anything is sent, for a schedule that is not right (`check=False`
    runs it all the same), and ValueError for one made for other ranks, chunks or micro-batches.
    `sends="blocking"` waits for each message where it stands.
    """
    made_for = {"p": schedule.p, "v": schedule.v, "m": schedule.m}
    found = {"p": model.mesh.pp.size, "v": model.chunks, "m": len(microbatches)}
    if made_for != found or schedule.v_shaped:
        shape = ", V-shaped" if schedule.v_shaped else ""
        raise ValueError(f"the schedule is for {made_for}{shape}, model and batch have {found}")
    if not torch.is_grad_enabled():
        forwards = [[a for a in actions if a.kind == "F"] for actions in schedule.actions]
        schedule = replace(schedule, actions=forwards)
    elif check:
        schedule.validate(sends)
    return _Step(model, schedule, microbatches, loss_scale, sends).run()


class _Step:
    """One rank's way through its list. Keys are (kind, micro-batch, chunk)."""

    def __init__(
        self, model: Model, schedule: Schedule, microbatches: Sequence[Batch],
        loss_scale: float | Tensor, sends: str,
    ) -> None:  # fmt: skip
        self.model, self.schedule, self.microbatches = model, schedule, microbatches
        self.axis, self.loss_scale, self.sends = model.mesh.pp, loss_scale, sends
        mine = schedule.actions[self.axis.rank]
        self.split = {(n, chunk) for kind, n, chunk in mine if kind == "I"}
        self.last_stage = schedule.p * schedule.v - 1
        counts = [int((targets != -100).sum()) for _, targets in microbatches]
        self.shares = [count / max(1, sum(counts)) for count in counts]
        if torch.is_grad_enabled():
            model.tokens_since_finish = model.tokens_since_finish + sum(counts)
        self.loss = torch.zeros((), device=model.mesh.device)
        self.arriving: dict[Action, Handle | Tensor] = {}  # by RECV_F, RECV_B
        self.leaving: dict[Action, Tensor] = {}  # by SEND_F, SEND_B
        self.sent: list[Handle] = []
        self.held: dict[tuple[int, int], tuple[Tensor | None, Tensor | None, Later]] = {}

    def run(self) -> Tensor:
        """All actions; then the loss from the last stage."""
        has_messages = any("_" in a.kind for actions in self.schedule.actions for a in actions)
        full = self.schedule if has_messages else self.schedule.with_messages()
        for is_message, group in groupby(
            full.actions[self.axis.rank], key=lambda action: "_" in action.kind
        ):
            if is_message:
                self._exchange(list(group))
                continue
            for action in group:
                needed = action._replace(kind="RECV_F" if action.kind == "F" else "RECV_B")
                if isinstance(there := self.arriving.get(needed), Handle):
                    there.wait()  # idle: not in the span of the work
                with span(str(action)):
                    {"F": self._forward, "W": self._weights}.get(action.kind, self._backward)(
                        action
                    )
        for handle in self.sent:
            handle.wait()
        with phase("other"):
            return broadcast(self.loss, self.axis, self.schedule.place(self.last_stage)[0])

    def _exchange(self, actions: list[Action]) -> None:
        messages = []
        for action in actions:
            verb, _, way = action.kind.partition("_")
            step = 1 if action.kind in ("SEND_F", "RECV_B") else -1
            stage = self.schedule.stage(self.axis.rank, action.chunk)
            peer = self.schedule.place(stage + step)[0]
            if verb == "SEND":
                x = self.leaving.pop(action)
            else:
                x = self.model.activations(self.microbatches[action.microbatch][0])
            of_phase = "forward" if way == "F" else "backward"
            messages.append(Message(verb.lower(), x, peer, of_phase))
        if self.sends == "blocking":
            for action, (op, x, peer, of_phase) in zip(actions, messages, strict=True):
                with phase(of_phase):
                    BLOCKING[op](x, self.axis, peer)
                self.arriving[action] = x
            return
        handles = exchange(messages, self.axis)
        self.sent = [handle for handle in self.sent if not handle.arrived()]
        for action, handle in zip(actions, handles, strict=True):
            if action.kind.startswith("SEND"):
                self.sent.append(handle)
            else:
                self.arriving[action] = handle

    def _take(self, action: Action) -> Tensor:
        there = self.arriving.pop(action)
        return there if isinstance(there, Tensor) else there.wait()

    def _hand_on(self, way: str, action: Action, stage: int, x: Tensor) -> None:
        """To the rank that has `stage`; where that is this one, no message is needed."""
        rank, chunk = self.schedule.place(stage)
        if rank == self.axis.rank:
            self.arriving[Action(f"RECV_{way}", action.microbatch, chunk)] = x
        else:
            self.leaving[action._replace(kind=f"SEND_{way}")] = x

    def _defer(self, chunk: int, later: Later | None) -> None:
        for module in self.model.modules_of(chunk):
            if hasattr(module, "later"):
                module.later = later  # type: ignore[assignment]

    def _forward(self, action: Action) -> None:
        _, n, chunk = action
        stage = self.schedule.stage(self.axis.rank, chunk)
        tokens, targets = self.microbatches[n]
        x = tokens
        if stage:
            x = self._take(action._replace(kind="RECV_F")).detach()
            x.requires_grad_(torch.is_grad_enabled())
        later: Later = []
        # Whether the backward is split must be known now.
        self._defer(chunk, later if (n, chunk) in self.split else None)
        y = self.model.stage(chunk, x)
        if stage < self.last_stage:
            self._hand_on("F", action, stage + 1, y.detach())
        else:
            y = self.model.mean_loss(y, targets) * self.shares[n]
            self.loss = self.loss + y.detach()
            y = y * self.loss_scale
        if torch.is_grad_enabled():
            self.held[n, chunk] = (x, y, later)

    def _backward(self, action: Action) -> None:
        kind, n, chunk = action
        stage = self.schedule.stage(self.axis.rank, chunk)
        x, y, later = self.held.pop((n, chunk))
        assert x is not None and y is not None
        grad = None
        if stage < self.last_stage:
            grad = self._take(action._replace(kind="RECV_B"))
        self._defer(chunk, later if kind == "I" else None)  # a recomputation must know it too
        torch.autograd.backward(y, grad)
        if stage:
            assert x.grad is not None
            self._hand_on("B", action, stage - 1, x.grad)
        if kind == "I":
            self.held[n, chunk] = (None, None, later)  # the inputs of W are in `later`

    def _weights(self, action: Action) -> None:
        _, _, later = self.held.pop((action.microbatch, action.chunk))
        with phase("backward"):
            for add in later:
                add()
