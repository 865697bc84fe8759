"""What the machine writes down: incidents with their timeline, checkpoints, and calls to other services."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

from switchgear.recovery import model as m
from switchgear.recovery.diagnosis import summarize

#: Bounds of what a job's state keeps; the store keeps the records themselves.
CHECKPOINTS_MAX = 200
EVIDENCE_MAX = 20


@dataclass
class Records:
    """The state under change, the time of the event and the effects so far."""

    state: m.JobState
    now: m.Now
    effects: list[m.Effect] = field(default_factory=list)

    def slot(self, node: str) -> m.Slot | None:
        return next((slot for slot in self.state.slots if slot.node == node), None)

    def mark(self, phase: str, time_ns: int) -> None:
        if self.state.incident:
            self.state.incident.timeline.setdefault(phase, time_ns)

    def save_incident(self) -> None:
        if self.state.incident:
            self.state.incident.summary = summarize(self.state.incident)
            self.effects.append(m.SaveIncident(copy.deepcopy(self.state.incident)))

    def close_incident(self, end: m.IncidentState) -> None:
        if self.state.incident:
            self.state.incident.state = end
            self.save_incident()
            self.state.incident = None

    def checkpoint_seen(self, event: m.CheckpointSeen) -> None:
        self.keep_checkpoint(replace(event.checkpoint, generation=event.generation))

    def keep_checkpoint(self, checkpoint: m.Checkpoint) -> None:
        known, checkpoint = self.state.checkpoints.get(checkpoint.path), replace(checkpoint)
        if known:
            checkpoint.generation = checkpoint.generation or known.generation
            checkpoint.commit_ns = checkpoint.commit_ns or known.commit_ns
            # A good file of another content under the old name is of a step that nobody knows.
            gone = checkpoint.state in (m.CheckpointState.CORRUPT, m.CheckpointState.EXPIRED)
            if checkpoint.step is None and (gone or checkpoint.digest == known.digest):
                checkpoint.step = known.step
        self.state.checkpoints[checkpoint.path] = checkpoint
        while len(self.state.checkpoints) > CHECKPOINTS_MAX:
            oldest = min(self.state.checkpoints.values(), key=lambda c: c.commit_ns)
            del self.state.checkpoints[oldest.path]
        self.effects.append(m.SaveCheckpoint(copy.copy(checkpoint)))

    def set_state(self, outcome: m.JobOutcome, message: str) -> None:
        # Only the newest state counts, so that what waits stays small while the scheduler is away; the oldest call may be under way.
        waiting = self.state.outbox
        self.state.outbox = [c for i, c in enumerate(waiting) if i == 0 or c.kind != "set_state"]
        self.call("set_state", reason=message, outcome=outcome)

    def call(
        self,
        kind: str,
        *,
        node: str = "",
        reason: str = "",
        outcome: m.JobOutcome | None = None,
        epoch: int = 0,
        avoid: tuple[str, ...] = (),
        lost: tuple[str, ...] = (),
    ) -> None:
        self.state.calls_made += 1
        self.state.outbox.append(m.Call(self.state.calls_made, kind, node, reason, outcome, epoch, avoid, lost))

    def add_evidence(self, text: str) -> None:
        incident = self.state.incident
        if incident and text not in incident.evidence and len(incident.evidence) < EVIDENCE_MAX:
            incident.evidence.append(text)
