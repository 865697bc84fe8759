"""What recovery promises, checked after each event against the world and not against its own books."""

from __future__ import annotations

from collections.abc import Sequence

from simworld.books import balance
from simworld.control import Control
from simworld.kernel import Kernel, Violation
from simworld.scheduler import SimScheduler
from simworld.training import File, Gang, Program, SimRank

from switchgear.recovery import model as m
from switchgear.recovery.faults import FAILURES_MAX
from switchgear.recovery.policy import NO_PROGRESS_MAX
from switchgear.recovery.records import CHECKPOINTS_MAX, EVIDENCE_MAX

#: Calls that may wait while the scheduler is away.
OUTBOX_MAX = 8
_CLOSED = {m.IncidentState.RESOLVED, m.IncidentState.ESCALATED}


class Promises:
    def __init__(self, kernel: Kernel, program: Program, scheduler: SimScheduler, control: Control) -> None:
        self.kernel, self.program, self.scheduler, self.control = kernel, program, scheduler, control
        program.on_spawn = self.spawned
        program.on_any_step = self.stepped
        self.newest = 0
        self.skipped = frozenset[str]()
        control.taken = self.taken
        self.generation = 0
        #: node -> generation that had been reached when the machine took the evidence.
        self.bad_since: dict[str, int] = {}
        #: When the check before the newest attempt was first asked for.
        self.check_sent_s = 0.0
        self._checking_for = -1
        self._told = ""

    def require(self, holds: bool, promise: str) -> None:
        if not holds:
            raise Violation(promise)

    def spawned(self, rank: SimRank) -> None:
        """The promise above all others.

        What is left on a node that the job no longer has may wait for its end, if it can do nothing but wait.
        """
        self.newest = max(self.newest, rank.generation)
        seats = {slot.node for slot in self.scheduler.placement}
        others = {
            other.generation
            for other in self.program.live
            if other.generation != rank.generation
            and not other.doomed
            and (other.node in seats or not self.program.gangs[other.generation].over)
        }
        self.require(not others, f"generations {others} still live when rank {rank.rank} of {rank.generation} starts")
        self.require(
            self.bad_since.get(rank.node, rank.generation) >= rank.generation,
            f"rank {rank.rank} of generation {rank.generation} starts on {rank.node} despite fatal evidence",
        )

    def stepped(self, gang: Gang) -> None:
        self.require(
            gang.generation >= self.newest, f"generation {gang.generation} makes a step after {self.newest} has begun"
        )

    def repaired(self, node: str) -> None:
        self.bad_since.pop(node, None)

    def taken(self, before: m.JobState, event: m.Event, after: m.JobState, effects: Sequence[m.Effect]) -> None:
        self.require(after.generation >= self.generation, "the generation fell")
        self.generation = after.generation
        if isinstance(event, m.NodeSignal) and before.phase is not m.Phase.ENDED:
            self.bad_since.setdefault(event.node, after.generation)
        if after.phase is not before.phase:
            self.kernel.note(f"recovery   {after.phase} (generation {after.generation})")
            if after.phase is m.Phase.CHECKING and after.generation != self._checking_for:
                # An answer may be from before a crash, while nothing ran.
                self._checking_for, self.check_sent_s = after.generation, self.kernel.now_s
        self.skipped = frozenset(after.skipped)
        for effect in effects:
            self.effect(effect, event)
        self.bounds(after)
        balance(before, after, self.kernel.now)

    def effect(self, effect: m.Effect, event: m.Event) -> None:
        match effect:
            case m.SaveIncident(incident):
                told = f"incident   {incident.incident_id} {incident.state}: {incident.summary}"
                if told != self._told:
                    self.kernel.note(told)
                self._told = told
                self.require(bool(incident.summary), "an incident has no summary")
            case m.SaveAttempt(attempt) if attempt.state is m.AttemptState.STARTING:
                self.started(attempt, event)
            case _:
                pass

    def started(self, attempt: m.Attempt, event: m.Event) -> None:
        """It resumes from the newest checkpoint that was good when it was looked for."""
        self.kernel.note(f"attempt    {attempt.generation} from {attempt.resume_path or 'the start'}")
        folder = self.program.folder
        if attempt.resume_path not in folder.files and f"quarantine/{attempt.resume_path}" in folder.quarantined:
            return  # asked twice around a crash: the first answer is used, the second found damage that came in between
        good = [f for f in self.program.folder.files.values() if self._was_good(f)]
        newest = max((f for f in good if f.digest not in self.skipped), key=lambda f: f.step, default=None)
        newest = newest or max(good, key=lambda f: f.step, default=None)
        expected = newest.path if newest else ""
        self.require(
            attempt.resume_path == expected,
            f"attempt {attempt.generation} resumes from {attempt.resume_path or 'the start'}, not {expected}",
        )
        if newest:
            self.require(
                attempt.resume_step in {newest.step, None}, f"{newest.path} is not of step {attempt.resume_step}"
            )

    def _was_good(self, file: File) -> bool:
        # Damage that comes after the look is seen only when the checkpoint is read.
        return file.damaged_s is None or file.damaged_s >= self.check_sent_s

    def bounds(self, state: m.JobState) -> None:
        self.require(len(state.failures) <= FAILURES_MAX, "failures are unbounded")
        self.require(len(state.checkpoints) <= CHECKPOINTS_MAX, "checkpoints are unbounded")
        self.require(len(state.outbox) <= OUTBOX_MAX, f"{len(state.outbox)} calls wait")
        if state.incident:
            self.require(len(state.incident.evidence) <= EVIDENCE_MAX, "evidence is unbounded")
        self.require((state.incident is None) or state.phase is not m.Phase.ENDED, "an incident outlives its job")

    # At the end.

    def kept(self) -> None:
        """All that can be said only when everything is over."""
        state, disk = self.control.disk.state, self.control.disk
        self.require(state is not None and state.phase is m.Phase.ENDED, "the job has not ended")
        assert state is not None
        carried = list(dict.fromkeys(self.control.carried))
        lost = [call for number, call in disk.intents.items() if number not in carried and not self._superseded(call)]
        self.require(not state.outbox and not lost, f"lost: {lost}")
        self.require(carried == sorted(carried), "calls came out of order")
        if state.outcome and self.scheduler.state != "CANCELLED":  # whoever comes first
            self.require(self.scheduler.state == state.outcome.value, f"{self.scheduler.state} is not {state.outcome}")
        for incident in disk.incidents.values():
            self.require(incident.state in _CLOSED, f"{incident.incident_id} stays {incident.state}")
            self.require("being" not in incident.summary, f"unfinished story: {incident.summary}")
        self.require(
            len({i.incident_id for i in disk.incidents.values()}) == state.incident_count, "incidents were lost"
        )
        for attempt in disk.attempts.values():
            self.require(attempt.end_ns > 0, f"attempt {attempt.generation} has no end")
            owners = [i for i in disk.incidents.values() if _covers(i, attempt.generation)]
            least = int(attempt.state is m.AttemptState.FAILED)
            self.require(
                least <= len(owners) <= 1,
                f"attempt {attempt.generation} ({attempt.state}) is in {len(owners)} incidents",
            )
        if state.outcome is m.JobOutcome.FAILED:
            self.given_up_rightly(state)

    def _superseded(self, call: m.Call) -> bool:
        return call.kind == "set_state" and any(
            later.kind == call.kind and later.call_id > call.call_id for later in self.control.disk.intents.values()
        )

    def given_up_rightly(self, state: m.JobState) -> None:
        """A job is not given up for lack of progress that it made, nor for attempts that were never made."""
        last = list(self.control.disk.incidents.values())[-1]
        self.require(last.state is m.IncidentState.ESCALATED, "a failed job without an escalated incident")
        if "made no new step" in last.decision_reason:
            best, without = 0, 0
            for generation in range(1, state.generation + 1):
                reached = self.program.reached.get(generation, 0)
                without = 0 if reached > best else without + 1
                best = max(best, reached)
            self.require(without >= NO_PROGRESS_MAX - 1, f"given up after {without} attempts without a new step")


def _covers(incident: m.Incident, generation: int) -> bool:
    return incident.failed_generation <= generation and (
        not incident.new_generation or generation < incident.new_generation
    )
