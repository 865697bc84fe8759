"""A simulated service under a policy: requests of a trace, a gateway that holds them, replicas that start and drain, in virtual time.

The gateway gives a request to the READY replica with the least work and holds it while all have `GATEWAY_DEPTH` waiting, oldest first,
so that a replica that comes takes of what waits. A start takes `cold_start_s` times a log-normal factor of median 1 and sigma `cold_jitter`,
and with probability `cold_fail` ends there without a replica; its successor is asked for at once. On the way down starting replicas go
first, youngest first, then sick ones, then those with the least left to do; they finish what they have.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from switchgear.autoscaler.observation import (
    ARRIVALS_MAX,
    Decision,
    Engine,
    Observation,
    Phase,
    ReplicaRow,
    Samples,
    Scaler,
    Work,
)
from switchgear.autoscaler.simulate.conditions import Conditions, GivenUp, Outcome, Taken, Throttle, keeps
from switchgear.autoscaler.simulate.replica import Request, SimReplica

#: Requests that may wait in a replica behind the one whose prompt it reads.
GATEWAY_DEPTH = 2
#: A service whose requests have not ended so long after the last came never ends them.
TAIL_S = 4 * 3600.0


@dataclass(slots=True)
class _Replica:
    number: int
    asked_s: float
    ready_s: float  # when it will be READY, or will have failed
    nominal_s: float  # when it is expected to be
    fails: bool
    engine: SimReplica
    phase: Phase = Phase.STARTING
    ended_s: float = math.inf
    version: int = 0
    seen: tuple[int, int, int, float] = (0, 0, 0, 0.0)


#: Time, what was seen, and what was decided on it.
Watch = Callable[[float, Observation, Decision], None]


class World:
    """One run. Use `run`."""

    def __init__(
        self,
        requests: Sequence[Request],
        scaler: Scaler,
        conditions: Conditions,
        *,
        watch: Watch | None = None,
        broken_max: float = math.inf,
        replica_s_max: float = math.inf,
    ) -> None:
        self._watch = watch
        self._requests, self._scaler, self._given = requests, scaler, conditions
        self._broken, self._broken_max, self._replica_s_max = 0, broken_max, replica_s_max
        self._given_up: GivenUp | None = None
        self._slo, self._model = conditions.slo, conditions.model
        self._queue: deque[Request] = deque()
        self._events: list[tuple[float, int, int, int]] = []
        self._replicas: dict[int, _Replica] = {}
        self._ready: list[_Replica] = []
        self._numbers = 0
        self._desired = conditions.initial
        self._changes: list[Taken] = []
        self._causes: Counter[str] = Counter()
        model = conditions.model
        kv_tokens = None if model.in_seconds else model.kv_tokens
        self._nothing = _samples((), tokens=not model.in_seconds)
        self._engine = Engine("simulated", sequences_max=model.sequences_max, kv_tokens=kv_tokens)
        self._replica_s = 0.0
        self._span_s = requests[-1].arrival_s if requests else 0.0
        self._open = len(requests)
        self._starts = self._failures = self._ready_max = self._held_max = 0
        # Of the interval.
        self._arrived = self._arrived_tokens = 0
        self._arrivals: list[Request] = []
        self._ended: list[Request] = []
        self._cold: list[float] = []
        self._failed: list[float] = []

    def run(self) -> Outcome:
        given, scaler = self._given, self._scaler
        for _ in range(given.initial):
            self._become_ready(self._ask(0.0, ready=True), 0.0)
        tick_s, throttle, at = 0.0, given.throttle, 0
        count, requests = len(self._requests), self._requests
        while self._open and not self._given_up and (at < count or tick_s < self._span_s + TAIL_S):
            arrival_s = requests[at].arrival_s if at < count else math.inf
            event_s = self._events[0][0] if self._events else math.inf
            if throttle and throttle.at_s <= min(arrival_s, event_s, tick_s):
                self._throttle(throttle)
                throttle = None
            elif event_s <= arrival_s and event_s <= tick_s:
                self._event()
            elif arrival_s <= tick_s:
                self._arrive(requests[at])
                at += 1
            else:
                self._decide(tick_s)
                tick_s += scaler.interval_s
        for one in self._replicas.values():
            self._count(one, self._span_s)
        return Outcome(
            self._requests,
            self._changes,
            dict(self._causes.most_common()),
            self._replica_s,
            self._span_s,
            self._starts,
            self._failures,
            self._ready_max,
            self._held_max,
            given_up=self._given_up,
        )

    # What happens

    def _event(self) -> None:
        now_s, number, version, _ = heapq.heappop(self._events)
        one = self._replicas.get(number)
        if one is None or one.version != version:
            return
        if one.phase is Phase.STARTING:
            self._started(one, now_s)
            return
        self._advance(one, now_s)
        self._feed(now_s)
        self._schedule(one)
        self._ending(one, now_s)

    def _arrive(self, request: Request) -> None:
        self._arrived += 1
        self._arrived_tokens += request.input_tokens
        self._arrivals.append(request)
        self._queue.append(request)
        self._feed(request.arrival_s)

    def _started(self, one: _Replica, now_s: float) -> None:
        if one.fails:
            self._failures += 1
            self._failed.append(now_s - one.asked_s)
            self._end(one, now_s)
            self._follow(now_s)
            return
        self._cold.append(now_s - one.asked_s)
        self._become_ready(one, now_s)
        self._feed(now_s)

    def _become_ready(self, one: _Replica, now_s: float) -> None:
        one.engine.now_s, one.phase = now_s, Phase.READY
        self._ready.append(one)
        self._ready_max = max(self._ready_max, len(self._ready))

    def _throttle(self, throttle: Throttle) -> None:
        for one in self._ready[: math.ceil(len(self._ready) * throttle.fraction)]:
            self._advance(one, throttle.at_s)
            one.engine.speed = throttle.speed
            self._schedule(one)

    # Requests

    def _feed(self, now_s: float) -> None:
        """Gives waiting requests to the READY replicas with the least work."""
        while self._queue:
            best: _Replica | None = None
            least_s = math.inf
            for one in self._ready:
                engine = one.engine
                if len(engine.prompts) - engine.reading < GATEWAY_DEPTH and (backlog_s := engine.backlog_s) < least_s:
                    best, least_s = one, backlog_s
                    if not backlog_s:
                        break
            if best is None:
                self._held_max = max(self._held_max, len(self._queue))
                return
            self._advance(best, now_s)
            best.engine.add(self._queue.popleft())
            self._schedule(best)

    def _advance(self, one: _Replica, now_s: float) -> None:
        if ended := one.engine.advance(now_s):
            self._ended += ended
            self._open -= len(ended)

    def _schedule(self, one: _Replica) -> None:
        one.version += 1
        next_s = one.engine.next_event_s()
        if not math.isinf(next_s):
            heapq.heappush(self._events, (next_s, one.number, one.version, 0))

    # Replicas

    def _ask(self, now_s: float, *, ready: bool = False) -> _Replica:
        self._numbers += 1
        given = self._given
        # Of the number alone, so that the n-th start takes the same under every policy.
        draw = random.Random(f"{given.seed}:{self._numbers}")
        takes_s = given.cold_start_s * math.exp(given.cold_jitter * draw.gauss(0, 1))
        fails = draw.random() < given.cold_fail
        engine = SimReplica(self._model, now_s)
        one = _Replica(self._numbers, now_s, now_s + takes_s, now_s + given.cold_start_s, fails, engine)
        self._replicas[one.number] = one
        if not ready:
            self._starts += 1
            heapq.heappush(self._events, (one.ready_s, one.number, one.version, 0))
        return one

    def _follow(self, now_s: float) -> None:
        """Makes the replicas as many as desired."""
        counting = [one for one in self._replicas.values() if one.phase is not Phase.DRAINING]
        for _ in range(self._desired - len(counting)):
            self._ask(now_s)
        surplus = len(counting) - self._desired
        if surplus > 0:
            counting.sort(key=_ends_first)
            for one in counting[:surplus]:
                self._drain(one, now_s)

    def _drain(self, one: _Replica, now_s: float) -> None:
        if one.phase is Phase.STARTING:
            self._end(one, now_s)
            return
        one.phase = Phase.DRAINING
        self._ready.remove(one)
        self._advance(one, now_s)
        self._schedule(one)
        self._ending(one, now_s)

    def _ending(self, one: _Replica, now_s: float) -> None:
        if one.phase is Phase.DRAINING and one.engine.idle:
            self._end(one, now_s)

    def _end(self, one: _Replica, now_s: float) -> None:
        one.ended_s = now_s
        self._count(one, self._span_s)
        del self._replicas[one.number]

    def _count(self, one: _Replica, until_s: float) -> None:
        self._replica_s += max(0.0, min(one.ended_s, until_s) - one.asked_s)

    # Decisions

    def _decide(self, now_s: float) -> None:
        for one in self._replicas.values():
            # Its next event stays where it is: nothing ends before it.
            if one.phase is not Phase.STARTING:
                self._advance(one, now_s)
        seen = self._observe(now_s)
        decision = self._scaler.decide(now_s, seen)
        before, self._desired = self._desired, seen.bounded(decision.replicas)
        self._causes[decision.cause] += 1
        if before != self._desired:
            starting = sum(one.phase is Phase.STARTING for one in self._replicas.values())
            self._changes.append(Taken(now_s, decision, before, self._desired, len(self._ready), starting))
        if self._watch is not None:
            self._watch(now_s, seen, decision)
        self._follow(now_s)
        if self._broken > self._broken_max:
            self._given_up = GivenUp.BROKEN
        elif self._spent_s(now_s) > self._replica_s_max:
            self._given_up = GivenUp.COST

    def _spent_s(self, now_s: float) -> float:
        if math.isinf(self._replica_s_max):
            return 0.0
        return self._replica_s + sum(min(now_s, self._span_s) - one.asked_s for one in self._replicas.values())

    def _observe(self, now_s: float) -> Observation:
        given, blind, model = self._given, self._given.blindness, self._model
        dark = blind is not None and blind.at_s <= now_s < blind.until_s
        ended, queue, tokens = self._ended, self._queue, not model.in_seconds
        kept = sum(keeps(request, self._slo, model) for request in ended)
        self._broken += len(ended) - kept
        # Most observations of a long quiet trace see nothing ended.
        completed, ttft_s, tpot_s, e2e_s, wait_s = _samples(ended, tokens=tokens) if ended else self._nothing
        seen = Observation(
            interval_s=self._scaler.interval_s,
            desired=self._desired,
            replicas=tuple(self._row(one, now_s, dark=dark) for one in self._replicas.values()),
            min_replicas=given.min_replicas,
            max_replicas=given.max_replicas,
            slo=self._slo,
            gpus_per_replica=given.gpus_per_replica,
            queue=Work(len(queue), sum(request.input_tokens for request in queue) if tokens else None),
            oldest_wait_s=now_s - queue[0].arrival_s if queue else 0.0,
            arrived=Work(self._arrived, self._arrived_tokens if tokens else None),
            arrivals=_arrivals(self._arrivals, now_s, tokens=tokens) if self._arrivals else (),
            completed=completed,
            kept=kept,
            broken=len(ended) - kept,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=e2e_s,
            wait_s=wait_s,
            cold_starts_s=tuple(self._cold),
            failed_starts_s=tuple(self._failed),
            cold_start_s=given.cold_start_s,
            engine=self._engine,
            unix_s=None if given.start_unix_s is None else given.start_unix_s + now_s,
        )
        self._arrived = self._arrived_tokens = 0
        self._arrivals, self._ended, self._cold, self._failed = [], [], [], []
        return _darkened(seen, told=blind.told) if dark and blind else seen

    def _row(self, one: _Replica, now_s: float, *, dark: bool) -> ReplicaRow:
        name, age_s = f"r{one.number}", now_s - one.asked_s
        if one.phase is Phase.STARTING:
            return ReplicaRow(name, Phase.STARTING, age_s, max(0.0, one.nominal_s - now_s))
        engine, before = one.engine, one.seen
        one.seen = (round(engine.prefill_tokens), round(engine.decode_tokens), round(engine.steps), engine.busy_s)
        throttle = self._given.throttle
        speed = engine.speed if throttle and throttle.told else None
        if dark:
            return ReplicaRow(name, one.phase, age_s, speed=speed)
        tokens = not self._model.in_seconds
        return ReplicaRow(
            name,
            one.phase,
            age_s,
            speed=speed,
            waiting=engine.waiting,
            running=engine.running,
            kv_use=engine.kv_use if tokens else None,
            prefill_tokens=one.seen[0] - before[0] if tokens else None,
            decode_tokens=one.seen[1] - before[1] if tokens else None,
            busy_s=one.seen[3] - before[3],
            steps=one.seen[2] - before[2] if tokens else None,
            remaining_tokens=engine.remaining_tokens if tokens else None,
        )


def run(
    requests: Sequence[Request],
    scaler: Scaler,
    conditions: Conditions,
    watch: Watch | None = None,
    *,
    broken_max: float = math.inf,
    replica_s_max: float = math.inf,
) -> Outcome:
    """One run to the end of the last request. requests: by arrival; they are written to. Same input, same outcome.

    watch: called at each decision, with what was seen and decided. broken_max, replica_s_max: a run in which more requests broke the promise,
    or that costs more, is given up.
    """
    world = World(requests, scaler, conditions, watch=watch, broken_max=broken_max, replica_s_max=replica_s_max)
    return world.run()


def _arrivals(arrived: Sequence[Request], now_s: float, *, tokens: bool) -> tuple[tuple[float, int, int], ...]:
    together = math.ceil(len(arrived) / ARRIVALS_MAX)
    if together <= 1:
        return tuple((now_s - one.arrival_s, 1, one.input_tokens if tokens else 0) for one in arrived)
    parts = (arrived[at : at + together] for at in range(0, len(arrived), together))
    return tuple(
        (now_s - part[0].arrival_s, len(part), sum(one.input_tokens for one in part) if tokens else 0) for part in parts
    )


def _samples(ended: Sequence[Request], *, tokens: bool) -> tuple[Work, Samples, Samples, Samples, Samples]:
    """What completed, and its TTFT, TPOT, end-to-end time and wait."""
    e2e_s = tuple((one.end_s - one.arrival_s, 1) for one in ended)
    wait_s = tuple((one.begun_s - one.arrival_s, 1) for one in ended)
    if not tokens:
        return Work(len(ended), service_s=sum(one.end_s - one.begun_s for one in ended)), (), (), e2e_s, wait_s
    completed = Work(len(ended), sum(one.input_tokens for one in ended), sum(one.output_tokens for one in ended))
    ttft_s = tuple((one.first_s - one.arrival_s, 1) for one in ended)
    tpot_s = tuple(((one.end_s - one.first_s) / (one.output_tokens - 1), 1) for one in ended if one.output_tokens > 1)
    return completed, ttft_s, tpot_s, e2e_s, wait_s


def _darkened(seen: Observation, *, told: bool) -> Observation:
    """What is left when the metrics vanish; not told: a query that finds no series and takes that for zero."""
    if told:
        return replace(
            seen,
            queue=None,
            oldest_wait_s=None,
            arrived=None,
            arrivals=(),
            completed=None,
            kept=None,
            broken=None,
            ttft_s=(),
            tpot_s=(),
            e2e_s=(),
            blind="no series of the service is found",
        )
    nothing = Work(0, 0, 0)
    return replace(
        seen,
        queue=nothing,
        oldest_wait_s=0.0,
        arrived=nothing,
        arrivals=(),
        completed=nothing,
        kept=0,
        broken=0,
        ttft_s=(),
        tpot_s=(),
        e2e_s=(),
    )


def _ends_first(one: _Replica) -> tuple[int, float]:
    if one.phase is Phase.STARTING:
        return (0, -one.asked_s)
    return (1 if one.engine.speed >= 1 else 0, one.engine.backlog_s + one.engine.remaining_tokens)
