"""The goodput ledger of a job: every nanosecond of its GPUs from the submission to its end, each in exactly one bucket.

`book` is called after each event of the machine with the states around it. Time is booked once it is decided what it was: a step, a
fault or the end of an attempt settles what came before. What is not settled yet is shown by `settled_at` under the best present
knowledge, and stays open in the ledger itself. All amounts are integers, so that the buckets sum to the wall clock exactly.

docs/goodput.md says from when to when each bucket goes, and why.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from switchgear.recovery.effects import Effect, SaveAttempt, SaveIncident
from switchgear.recovery.kinds import Activity, AttemptState, Fault, IncidentState, Phase
from switchgear.recovery.values import Attempt, Incident, Now

if TYPE_CHECKING:  # it holds a ledger
    from switchgear.recovery.model import JobState

#: Causes and nodes that are told apart; those beyond go into one line, so that a job's state stays small.
COSTS_MAX = 200
OTHER = "OTHER"
#: Cause of what is lost since the job left its nodes for another and no fault explains.
PREEMPTED = "PREEMPTED"
#: The wall clock may differ by so much from the monotonic one over one event, by NTP; more is a jump, which is no time that passed.
CLOCK_SLACK_NS = 1_000_000_000
#: A step takes too long from so many times the usual on: torch's own steps vary by less, a throttled GPU makes more of it.
SLOW = 1.5
#: Steps that must be known before any is called slow; the first ones compile and warm up.
STEPS_LEARNED_MIN = 20
#: Width of a bin of step times; the median is right to half of it.
_BIN = math.log(1.05)
#: Faults that are seen by the lack of progress.
_STALLS = frozenset({Fault.RANK_HUNG, Fault.RANK_STOPPED, Fault.RANK_BLOCKED})
#: Work of the job between two steps, which makes no step slow.
_WORK = frozenset({Activity.EVALUATION, Activity.COMPILE})


class Bucket(StrEnum):
    """In the order in which they are shown."""

    QUEUE = "queue"
    STARTUP = "startup"
    PRODUCTIVE = "productive"
    UNKNOWN = "unknown"
    CHECKPOINT = "checkpoint"
    DETECTION = "detection"
    STOP = "stop"
    RESTART = "restart"
    LOAD = "load"
    REDO = "redo"
    DEGRADED = "degraded"
    HUNG = "hung"
    IDLE = "idle"


#: What an incident costs.
LOST = frozenset({
    Bucket.DETECTION, Bucket.STOP, Bucket.RESTART, Bucket.LOAD, Bucket.REDO, Bucket.HUNG, Bucket.IDLE,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """What the incidents of one cause on one node cost. recovered: those that came to a new step, in `recovery_ns` together."""

    cause: str
    node: str
    incidents: int = 0
    lost_gpu_ns: int = 0
    recovered: int = 0
    recovery_ns: int = 0

    def plus(self, other: Cost) -> Cost:
        """The sum under this one's name."""
        return replace(
            self,
            incidents=self.incidents + other.incidents,
            lost_gpu_ns=self.lost_gpu_ns + other.lost_gpu_ns,
            recovered=self.recovered + other.recovered,
            recovery_ns=self.recovery_ns + other.recovery_ns,
        )


@dataclass(slots=True)
class Ledger:
    """Stored with the job. Times are nanoseconds of its own clock: Unix time at the start, and monotone from there."""

    #: GPUs that the job asked for; 0 = nothing has happened yet.
    gpus: int = 0
    start_ns: int = 0
    #: Of the newest event.
    at_ns: int = 0
    #: All before is booked.
    settled_ns: int = 0
    #: Our clocks at the newest event. The monotonic one is of this process: None after a restart.
    unix_ns: int = 0
    monotonic_s: float | None = None
    #: Sum = `gpus` x (`settled_ns` - `start_ns`).
    gpu_ns: dict[Bucket, int] = field(default_factory=dict)
    #: Of the current attempt: steps that are booked, checkpoint time that is booked, when its fault was seen (0 = none was).
    count: int = 0
    checkpoint_ns: int = 0
    detected_ns: int = 0
    #: Since the newest step that is booked, a rank was at an evaluation or compiled.
    at_work: bool = False
    #: Steps by time a step, in bins of 5 %, over all attempts with as many ranks as the newest.
    step_times: dict[int, int] = field(default_factory=dict)
    ranks: int = 0
    #: What the open incident has cost so far, and what closed ones did.
    open_gpu_ns: int = 0
    costs: tuple[Cost, ...] = ()

    def usual_step_ns(self) -> int:
        """Median time of a step; 0 while too few are known."""
        total = sum(self.step_times.values())
        if total < STEPS_LEARNED_MIN:
            return 0
        below = 0
        for number in sorted(self.step_times):
            below += self.step_times[number]
            if 2 * below >= total:
                return round(math.exp((number + 0.5) * _BIN))
        return 0


def book(before: JobState, effects: Sequence[Effect], after: JobState, now: Now) -> Ledger:
    """The ledger after an event that led from `before` to `after` at `now`, with these effects."""
    if before.phase is Phase.ENDED:
        return before.ledger
    booking = _Booking(_advanced(before, now), now)
    booking.take(before, effects, after)
    return booking.ledger


def settled_at(state: JobState, now: Now) -> Ledger:
    """A ledger with everything booked up to `now`, or to the end of the job: what is open under the best present knowledge."""
    ledger = book(state, (), state, now)
    if state.phase is Phase.ENDED:
        return ledger
    booking = _Booking(ledger, now)
    booking.lost, booking.preempted = state.incident is not None, state.preemptions > 0
    if state.attempt and not state.attempt.end_ns:
        booking.settle(state.attempt, state.incident, first=state.attempts_started <= 1, over=False)
    if state.incident:
        booking.close(state.incident)
    return booking.ledger


def add_cost(costs: Sequence[Cost], cost: Cost) -> tuple[Cost, ...]:
    """The costs with one more, added to those of the same cause and node; to the line of all others when there is no room."""
    found = next((c for c in costs if (c.cause, c.node) == (cost.cause, cost.node)), None)
    if found is None and len(costs) >= COSTS_MAX:
        found = next((c for c in costs if c.cause == OTHER), None)
        if found is None:  # the cheapest makes room
            least = min(costs, key=lambda c: c.lost_gpu_ns)
            rest = tuple(c for c in costs if c is not least)
            return (*rest, Cost(OTHER, "").plus(least).plus(cost))
    if found is None:
        return (*costs, cost)
    return tuple(c.plus(cost) if c is found else c for c in costs)


def _advanced(state: JobState, now: Now) -> Ledger:
    """A copy at the time of this event."""
    ledger = copy.copy(state.ledger)
    if not ledger.gpus:
        # A job that ran before there was a ledger is accounted for from now on.
        start_ns = now.unix_ns if state.attempts_started else state.create_ns
        ledger.gpus = state.spec.world_size
        ledger.start_ns = ledger.at_ns = ledger.settled_ns = ledger.unix_ns = start_ns
    passed_ns = now.unix_ns - ledger.unix_ns
    if ledger.monotonic_s is not None:
        monotonic_ns = round((now.monotonic_s - ledger.monotonic_s) * 1e9)
        if abs(passed_ns - monotonic_ns) > CLOCK_SLACK_NS:
            passed_ns = monotonic_ns
    ledger.at_ns += max(0, passed_ns)
    ledger.unix_ns, ledger.monotonic_s = now.unix_ns, now.monotonic_s
    return ledger


class _Booking:
    """One event being booked. lost: an incident is open, which bears what is lost; else a preemption does, when there was one."""

    def __init__(self, ledger: Ledger, now: Now) -> None:
        self.ledger, self._offset_ns = ledger, ledger.at_ns - now.unix_ns
        self.lost = self.preempted = False

    def take(self, before: JobState, effects: Sequence[Effect], after: JobState) -> None:
        ledger = self.ledger
        incidents = [effect.incident for effect in effects if isinstance(effect, SaveIncident)]
        incident = after.incident or (incidents[-1] if incidents else before.incident)
        self.lost, self.preempted = incident is not None, after.preemptions > 0
        if before.attempt is None or before.attempt.end_ns:
            self._until(ledger.at_ns, _between_attempts(before))
        else:
            attempt, over = _attempt_now(before.attempt, effects, after)
            seen = after.phase is Phase.STOPPING or attempt.state is AttemptState.FAILED
            if seen and before.phase is not Phase.STOPPING:
                ledger.detected_ns = ledger.at_ns
            ledger.at_work = ledger.at_work or any(
                watch.activity in _WORK and watch.count >= ledger.count for watch in after.watches.values()
            )
            first = before.attempts_started <= 1
            self._advance(attempt, incident, first=first, inference=before.spec.inference)
            if over:
                self.settle(attempt, incident, first=first, over=True)
                ledger.count = ledger.checkpoint_ns = ledger.detected_ns = 0
                ledger.at_work = False
        if incident and after.incident is None:
            self.close(incident)

    def _advance(self, attempt: Attempt, incident: Incident | None, *, first: bool, inference: bool) -> None:
        """Books what is decided while the attempt goes on: its way to the first step, and the steps since."""
        ledger, ranks = self.ledger, attempt.ranks.values()
        if not ledger.count:
            firsts = [rank.started_ns if inference else rank.first_step_ns for rank in ranks]
            if not firsts or not all(firsts):
                return
            self._start(attempt, self._time(max(firsts)), first=first)
            ledger.count = 1
            if ledger.ranks != len(ranks):
                ledger.ranks, ledger.step_times = len(ranks), {}
        if inference:  # it makes no steps, and serves as long as it runs
            if not ledger.detected_ns:
                self._until(ledger.at_ns, Bucket.PRODUCTIVE)
            return
        made, time_ns = _steps_made(attempt)
        if made > ledger.count:
            end_ns = self._time(time_ns)
            if end_ns <= ledger.settled_ns:
                # Known from the exits of the ranks, which tell the step and not its time.
                end_ns = self._fault_ns(attempt, incident) if ledger.detected_ns else ledger.at_ns
                if usual_ns := ledger.usual_step_ns():
                    end_ns = min(end_ns, ledger.settled_ns + (made - ledger.count) * usual_ns)
            self._steps(attempt, made, end_ns, _new_steps(attempt, first=first))

    def _start(self, attempt: Attempt, end_ns: int, *, first: bool) -> None:
        """From the decision, or the placement, over the start of the ranks to `end_ns`."""
        starts = [rank.started_ns for rank in attempt.ranks.values()]
        started_ns = min(self._time(max(starts)), end_ns) if starts and all(starts) else end_ns
        self._until(started_ns, Bucket.STARTUP if first else Bucket.RESTART)
        self._until(end_ns, Bucket.STARTUP if first else Bucket.LOAD)

    def _steps(self, attempt: Attempt, made: int, end_ns: int, bucket: Bucket) -> None:
        """bucket: of steps that are not known to be made again."""
        ledger, steps = self.ledger, made - self.ledger.count
        self._checkpoint(attempt, end_ns)
        span_ns = max(0, end_ns - ledger.settled_ns)
        usual_ns = steps * ledger.usual_step_ns()
        excess_ns = span_ns - usual_ns if 0 < usual_ns * SLOW < span_ns and not ledger.at_work else 0
        base = attempt.resume_step
        again = 0 if base is None else min(steps, max(0, attempt.high_water_step - base - ledger.count))
        redo_ns = (span_ns - excess_ns) * again // steps
        missing = ledger.gpus - len(attempt.ranks)
        new_ns = span_ns - excess_ns - redo_ns
        self._add(Bucket.REDO, redo_ns * ledger.gpus)
        self._add(bucket, new_ns * (ledger.gpus - missing))
        self._add(Bucket.DEGRADED, excess_ns * ledger.gpus + new_ns * missing)
        ledger.settled_ns += span_ns
        ledger.count = made
        if span_ns >= steps and not ledger.at_work:
            number = int(math.log(span_ns / steps) / _BIN)
            ledger.step_times = {**ledger.step_times, number: ledger.step_times.get(number, 0) + steps}
        ledger.at_work = False

    def settle(self, attempt: Attempt, incident: Incident | None, *, first: bool, over: bool) -> None:
        """Books all that is open of an attempt that is over, or as if it went on as it does."""
        ledger = self.ledger
        if not ledger.detected_ns:
            if not ledger.count:
                self._start(attempt, ledger.at_ns, first=first)
            elif not over:
                redoing = attempt.resume_step is not None and (
                    ledger.count < attempt.high_water_step - attempt.resume_step
                )
                self._until(ledger.at_ns, Bucket.REDO if redoing else _new_steps(attempt, first=first))
            self._checkpoint(attempt, ledger.at_ns)
            self._until(ledger.at_ns, Bucket.STOP)
            return
        stalled = incident is not None and incident.fault in _STALLS
        fault_ns = self._fault_ns(attempt, incident)
        if ledger.count:
            self._checkpoint(attempt, fault_ns)
            self._until(fault_ns, Bucket.HUNG if stalled else Bucket.REDO)
        else:
            self._start(attempt, fault_ns, first=first)
        self._until(ledger.detected_ns, Bucket.HUNG if stalled else Bucket.DETECTION)
        self._until(ledger.at_ns, Bucket.STOP)

    def _fault_ns(self, attempt: Attempt, incident: Incident | None) -> int:
        """When the attempt's fault happened, at the latest when it was seen."""
        ledger = self.ledger
        unix_ns = incident.timeline.get("fault", 0) if incident else 0
        if unix_ns < attempt.start_ns:  # of an attempt before, whose incident goes on; then the first rank that ended
            exits = [rank.exit for rank in attempt.ranks.values() if rank.exit]
            unix_ns = min((e.time_ns for e in exits if e.code != 0 and not e.by_us), default=0)
        if unix_ns:
            return min(self._time(unix_ns), ledger.detected_ns)
        # Nobody saw it: a step was under way, and no more than one.
        usual_ns = ledger.usual_step_ns() if ledger.count else 0
        return min(ledger.detected_ns, ledger.settled_ns + usual_ns) if usual_ns else ledger.detected_ns

    def close(self, incident: Incident) -> None:
        """The incident bears what was lost since it was opened."""
        ledger, times_ns = self.ledger, incident.timeline
        new_step_ns = times_ns.get("first_new_step", 0) if incident.state is IncidentState.RESOLVED else 0
        start_ns = times_ns.get("fault", times_ns.get("detected", 0))
        cost = Cost(
            incident.fault.value,
            incident.node,
            incidents=1,
            lost_gpu_ns=ledger.open_gpu_ns,
            recovered=int(new_step_ns > 0),
            recovery_ns=max(0, new_step_ns - start_ns) if new_step_ns else 0,
        )
        ledger.costs, ledger.open_gpu_ns = add_cost(ledger.costs, cost), 0

    def _checkpoint(self, attempt: Attempt, end_ns: int) -> None:
        """Books the time in checkpoints that has become known. One rank writes while the others wait for it."""
        ledger = self.ledger
        known_ns = max((rank.checkpoint_ns for rank in attempt.ranks.values()), default=0)
        span_ns = max(0, min(known_ns - ledger.checkpoint_ns, end_ns - ledger.settled_ns))
        ledger.checkpoint_ns += span_ns
        self._until(ledger.settled_ns + span_ns, Bucket.CHECKPOINT)

    def _time(self, unix_ns: int) -> int:
        """A time of the record on the ledger's clock, within what is open."""
        return max(self.ledger.settled_ns, min(unix_ns + self._offset_ns, self.ledger.at_ns))

    def _until(self, end_ns: int, bucket: Bucket) -> None:
        span_ns = end_ns - self.ledger.settled_ns
        if span_ns > 0:
            self.ledger.settled_ns = end_ns
            self._add(bucket, span_ns * self.ledger.gpus)

    def _add(self, bucket: Bucket, gpu_ns: int) -> None:
        ledger = self.ledger
        if gpu_ns:
            ledger.gpu_ns = {**ledger.gpu_ns, bucket: ledger.gpu_ns.get(bucket, 0) + gpu_ns}
            if self.lost and bucket in LOST:
                ledger.open_gpu_ns += gpu_ns
            elif self.preempted and bucket in LOST:
                ledger.costs = add_cost(ledger.costs, Cost(PREEMPTED, "", lost_gpu_ns=gpu_ns))


def _between_attempts(state: JobState) -> Bucket:
    if state.phase is Phase.REPLACING:
        return Bucket.IDLE if state.epoch else Bucket.QUEUE
    return Bucket.RESTART if state.attempts_started else Bucket.STARTUP


def _new_steps(attempt: Attempt, *, first: bool) -> Bucket:
    """Without a number, a later attempt's steps may be new or made again."""
    return Bucket.PRODUCTIVE if first or attempt.resume_step is not None else Bucket.UNKNOWN


def _attempt_now(attempt: Attempt, effects: Sequence[Effect], after: JobState) -> tuple[Attempt, bool]:
    """What is known of the attempt after the event, also when the next one has begun; and whether it is over."""
    if after.attempt and after.attempt.generation == attempt.generation:
        return after.attempt, after.attempt.end_ns > 0
    saved = [effect.attempt for effect in effects if isinstance(effect, SaveAttempt)]
    return next((a for a in reversed(saved) if a.generation == attempt.generation), attempt), True


def _steps_made(attempt: Attempt) -> tuple[int, int]:
    """Steps of this attempt that all ranks have completed, and the Unix time of the newest of these."""
    base, made, time_ns = attempt.resume_step, -1, 0
    for rank in attempt.ranks.values():
        count = rank.count if base is None or rank.step is None else max(rank.count, rank.step - base)
        if made < 0 or count < made:
            made, time_ns = count, rank.step_time_ns
        elif count == made:
            time_ns = max(time_ns, rank.step_time_ns)
    return made, time_ns
