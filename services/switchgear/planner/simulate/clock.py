"""A cluster in virtual time: jobs arrive, are planned, checkpoint, leave for others and end, in seconds that pass at once."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from switchgear.planner.model import Decisions, Ended, Job, Node, Preempt, Running, Seat, Snapshot

#: Ended jobs that are learned from; a planner would not see more of them either.
ENDED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job, at its `submit_s`, and what no planner is told: the seconds of work that it has, where its speed is 1.

    checkpoint_interval_s: between two verified checkpoints, None when it makes none. restart_s: before it works again after a stop.
    """

    job: Job
    seconds: float
    checkpoint_interval_s: float | None = None
    restart_s: float = 60.0


@dataclass(frozen=True, slots=True)
class NodesChange:
    """Nodes are from now on as given here, by name: closed, ill, well again."""

    at_s: float
    nodes: tuple[Node, ...]


@dataclass(slots=True)
class Outcome:
    """What became of a job so far. stops: how often it left for others. lost_gpu_s: work that it did again, and its restarts."""

    submit_s: float
    seconds: float
    start_s: float | None = None
    end_s: float | None = None
    stops: int = 0
    lost_gpu_s: float = 0.0


@dataclass(slots=True)
class _Run:
    seats: tuple[Seat, ...]
    start_s: float
    #: When work begins: after the restart, if it is one.
    work_from_s: float
    speed: float
    leave_s: float | None = None
    leaving_for: str = ""


class Clock:
    """The world around a planner. Same arguments, same history.

    A job works at the speed of the slowest GPU model that it is on. One that is preempted leaves at its next checkpoint, at the latest when it
    is told to, and waits again with the work of its newest checkpoint. A time limit ends a run as if its work were done.
    """

    def __init__(
        self,
        world: Snapshot,
        arrivals: Iterable[Arrival],
        plan: Callable[[Snapshot, float], Decisions],
        *,
        changes: Sequence[NodesChange] = (),
        tick_s: float = 600.0,
    ) -> None:
        """world: nodes, queues, reservations, levels, policy; nothing of it runs or waits. tick_s: while jobs wait, a plan at least so often."""
        self.now_s = 0.0
        self.outcomes: dict[str, Outcome] = {}
        self._world = world
        self._plan = plan
        self._tick_s = tick_s
        self._nodes = {node.name: node for node in world.nodes}
        self._arrivals: dict[str, Arrival] = {}
        self._pending: dict[str, Job] = {}
        self._runs: dict[str, _Run] = {}
        #: Seconds of work that are safe, by job.
        self._saved_s: dict[str, float] = {}
        self._ended: list[Ended] = []
        self._used_gpu_s: dict[tuple[str, str], float] = {}
        # (time, number, what happens): numbers keep what happens at one time in the order in which it became known.
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        for arrival in sorted(arrivals, key=lambda one: (one.job.submit_s, one.job.name)):
            self._at(arrival.job.submit_s, self._arriving(arrival))
            self._at(arrival.job.not_before_s, _nothing)
        for change in changes:
            self._at(change.at_s, self._changing(change))
        for reservation in world.reservations:
            self._at(reservation.start_s, _nothing)
            self._at(reservation.end_s, _nothing)

    def snapshot(self) -> Snapshot:
        """What a planner sees now."""
        return replace(
            self._world,
            nodes=tuple(self._nodes.values()),
            pending=tuple(self._pending.values()),
            running=tuple(self._seen(name, run) for name, run in self._runs.items()),
            used_gpu_s=dict(self._used_gpu_s),
            ended=tuple(self._ended),
        )

    def step(self) -> Decisions | None:
        """On to the next moment at which something happens, and what is decided then; None when nothing happens any more."""
        if not self._events and not (self._pending and self._runs):
            return None
        then_s = self._events[0][0] if self._events else self.now_s + self._tick_s
        if self._pending and self._runs:
            then_s = min(then_s, self.now_s + self._tick_s)
        self._pass(then_s - self.now_s)
        self.now_s = then_s
        while self._events and self._events[0][0] <= self.now_s:
            heapq.heappop(self._events)[2]()
        decisions = self._plan(self.snapshot(), self.now_s)
        for start in decisions.starts:
            self._start(start.job.name, start.seats)
        for preempt in decisions.preemptions:
            self._leave(preempt)
        return decisions

    def move(self, moves: Mapping[str, tuple[Seat, ...]]) -> None:
        """Running jobs stop now and go on elsewhere, from their newest checkpoints. moves: their seats by rank."""
        for name in moves:
            self._left(name, self._runs[name])
        for name, seats in moves.items():
            self._start(name, seats)

    def run(self, until_s: float = float("inf")) -> None:
        """Steps until nothing happens any more or the time has come."""
        while self.now_s < until_s and self.step() is not None:
            pass

    def _at(self, time_s: float, happens: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (max(time_s, self.now_s), self._numbers, happens))

    def _arriving(self, arrival: Arrival) -> Callable[[], None]:
        def arrive() -> None:
            name = arrival.job.name
            self._arrivals[name], self._pending[name] = arrival, arrival.job
            self.outcomes[name] = Outcome(arrival.job.submit_s, arrival.seconds)

        return arrive

    def _changing(self, change: NodesChange) -> Callable[[], None]:
        return lambda: self._nodes.update((node.name, node) for node in change.nodes)

    def _pass(self, seconds: float) -> None:
        keeps = 0.5 ** (seconds / self._world.policy.half_life_s)
        self._used_gpu_s = {key: used * keeps for key, used in self._used_gpu_s.items() if used > 1e-6}
        for name, run in self._runs.items():
            job = self._arrivals[name].job
            key = job.queue, job.user
            gpu_s = len(run.seats) * job.task.gpu_share * seconds
            self._used_gpu_s[key] = self._used_gpu_s.get(key, 0.0) + gpu_s

    def _seen(self, name: str, run: _Run) -> Running:
        arrival = self._arrivals[name]
        return Running(
            arrival.job,
            run.seats,
            run.start_s,
            self._checkpoint_s(name, run),
            arrival.checkpoint_interval_s,
            arrival.restart_s,
            run.leave_s is not None,
            run.leaving_for,
        )

    def _checkpoint_s(self, name: str, run: _Run) -> float | None:
        """When the work was saved from which it would go on; that of an earlier run is as good as one at the start."""
        interval_s = self._arrivals[name].checkpoint_interval_s
        if interval_s is not None and self.now_s >= run.work_from_s + interval_s:
            return run.work_from_s + (self.now_s - run.work_from_s) // interval_s * interval_s
        return run.work_from_s if self._saved_s.get(name) else None

    def _start(self, name: str, seats: tuple[Seat, ...]) -> None:
        job, arrival, outcome = self._pending.pop(name), self._arrivals[name], self.outcomes[name]
        models = {self._nodes[seat.node].gpu_model for seat in seats}
        speed = min((job.speeds.get(model, 1.0) for model in models), default=1.0)
        work_from_s = self.now_s + (arrival.restart_s if outcome.stops else 0.0)
        run = self._runs[name] = _Run(seats, self.now_s, work_from_s, speed)
        if outcome.start_s is None:
            outcome.start_s = self.now_s
        end_s = work_from_s + (arrival.seconds - self._saved_s.get(name, 0.0)) / speed
        if job.time_limit_s is not None:
            end_s = min(end_s, self.now_s + job.time_limit_s)
        self._at(end_s, lambda: self._end(name, run))

    def _end(self, name: str, run: _Run) -> None:
        if self._runs.get(name) is not run:
            return  # it left for another before
        del self._runs[name]
        job = self._arrivals[name].job
        self.outcomes[name].end_s = self.now_s
        ran_s = self.now_s - run.start_s
        gpus = len(run.seats) * job.task.gpu_share
        self._ended = [*self._ended[1 - ENDED_MAX :], Ended(job.user, job.key, job.queue, gpus, ran_s, self.now_s)]

    def _leave(self, preempt: Preempt) -> None:
        run, interval_s = self._runs[preempt.job], self._arrivals[preempt.job].checkpoint_interval_s
        run.leave_s, run.leaving_for = preempt.by_s, preempt.for_job
        if interval_s is not None:
            made = max((self.now_s - run.work_from_s) // interval_s, 0)
            run.leave_s = min(preempt.by_s, run.work_from_s + (made + 1) * interval_s)
        self._at(run.leave_s, lambda: self._left(preempt.job, run))

    def _left(self, name: str, run: _Run) -> None:
        if self._runs.get(name) is not run:
            return  # it ended by itself
        checkpoint_s, outcome, arrival = self._checkpoint_s(name, run), self.outcomes[name], self._arrivals[name]
        del self._runs[name]
        lost_s = self.now_s - run.start_s
        if checkpoint_s is not None:
            self._saved_s[name] = self._saved_s.get(name, 0.0) + max(checkpoint_s - run.work_from_s, 0.0) * run.speed
            lost_s = self.now_s - checkpoint_s
        outcome.stops += 1
        outcome.lost_gpu_s += (max(lost_s, 0.0) + arrival.restart_s) * len(run.seats) * arrival.job.task.gpu_share
        self._pending[name] = arrival.job


def _nothing() -> None:
    """Only the time has come to plan."""
