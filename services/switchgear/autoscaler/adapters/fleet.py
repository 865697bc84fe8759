"""Readings of many replicas, scrape after scrape, to what a policy sees. Pure.

What is missing is never zero:
- A replica that could not be scraped once is taken to have done as the others did; its next figures are spread over the time since its
  last. Twice in a row, it is unseen. When nobody is seen, or more than `UNSEEN_MAX` of all are unseen, the observation is blind; fewer
  are filled in as before, since a fleet of hundreds always has one that restarts, and to hold it for that would cost more.
- A series that a replica had and has no more makes the observation blind until it comes back or the replica goes. When another name of the
  table is there in its place, that one is used, and the observation is blind for this once, because nothing can be subtracted.
- A replica that runs requests and gets nowhere for a minute hangs, or its page does: blind as well.
- Arrivals are counted where the server counts them. Otherwise they are the requests that ended plus the growth of what is inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from switchgear.autoscaler.adapters.interval import Interval, inside, row
from switchgear.autoscaler.adapters.model import Quantity
from switchgear.autoscaler.adapters.scrape import Reading
from switchgear.autoscaler.adapters.watched import Watched
from switchgear.autoscaler.observation import Engine, Observation, Phase, ReplicaRow, Samples, Work

#: The fraction of replicas that may be unseen while what the others do stands for them: less than the head-room of any policy.
UNSEEN_MAX = 0.1
#: In a row, until a replica counts as unseen.
MISSES_MAX = 2
#: Replicas that a sentence names.
_NAMED_MAX = 3

Q = Quantity


class Fleet:
    """The replicas of one service, as their pages tell of them."""

    def __init__(self, engine: str = "") -> None:
        """engine: what observations name before any page was read."""
        self._engine = engine
        self._replicas: dict[str, Watched] = {}
        self._front = Watched()
        self._last_s: float | None = None

    def step(self, at_s: float, found: Mapping[str, Reading | str], front: Reading | str | None = None) -> Observation:
        """What is seen at `at_s`, which is later than the step before; its `interval_s` is 0 the first time.

        found: of each READY replica its page, or why there is none. One that is not in it any more is gone, not missing.
        front: the same of a gateway that holds requests; None: there is none.
        The caller puts in what pages do not tell: bounds, the promise, what is desired, replicas that start.
        """
        first, interval_s = self._last_s is None, at_s - (at_s if self._last_s is None else self._last_s)
        self._last_s = at_s
        for name in self._replicas.keys() - found.keys():
            del self._replicas[name]
        sums, doubts, rows = _Sums(), _Doubts(), list[ReplicaRow]()
        for name, got in found.items():
            replica = self._replicas.setdefault(name, Watched(at_s))
            if isinstance(got, str):
                replica.miss(got)
                rows.append(ReplicaRow(name, Phase.READY))
                continue
            step = replica.take(got, at_s)
            doubts.add(step.doubts, name)
            # After a scrape that failed, a reading tells of two intervals.
            did = None if step.did is None else step.did.part(min(1.0, interval_s / step.since_s))
            rows.append(row(name, got, did, interval_s))
            if did is not None:
                sums.add(did)
            elif not first:
                sums.inside += inside(got) or 0.0  # of a replica that is new all requests are
        unseen = {name: one for name, one in self._replicas.items() if one.misses}
        doubts.unseen(unseen, len(found))
        if first and found:
            doubts.add(("this is the first scrape; what happens is known from the second one on",))
        if unseen and sums.replicas:
            sums.scale(len(found) / (len(found) - len(unseen)))
        return Observation(
            interval_s=interval_s,
            desired=len(found),
            replicas=tuple(rows),
            queue=self._queue(at_s, front, doubts),
            arrived=sums.arrived(),
            completed=sums.completed(),
            ttft_s=sums.latencies(Q.TTFT),
            tpot_s=sums.latencies(Q.TPOT),
            e2e_s=sums.latencies(Q.E2E),
            wait_s=sums.latencies(Q.QUEUE_TIME),
            engine=self._told_engine(),
            blind=str(doubts),
        )

    def _queue(self, at_s: float, front: Reading | str | None, doubts: _Doubts) -> Work | None:
        if front is None:
            return None
        if isinstance(front, str):
            self._front.miss(front)
            if self._front.misses >= MISSES_MAX:
                doubts.add((f"the gateway does not tell ({front})",))
            return None
        doubts.add(self._front.take(front, at_s).doubts, "the gateway")
        waiting = front.gauges.get(Q.WAITING)
        if waiting is None:
            if not front.server.lazy:
                doubts.add((f"{front.server.title} does not tell how many requests it holds",), "the gateway")
            return None
        return Work(round(waiting))

    def _told_engine(self) -> Engine:
        reading = next((one.reading for one in self._replicas.values() if one.reading is not None), None)
        if reading is None:
            return Engine(self._engine)
        most, fits = reading.gauges.get(Q.SEQUENCES_MAX), reading.gauges.get(Q.KV_TOKENS)
        return Engine(
            reading.server.name,
            reading.version,
            # Some show 0 until they know.
            sequences_max=round(most) if most else None,
            kv_tokens=round(fits) if fits else None,
        )


@dataclass(slots=True)
class _Sums:
    """Of all replicas that could be compared with their last reading, as of one interval. inside_told: whether all say what is inside."""

    replicas: int = 0
    grown: dict[Quantity, float] = field(default_factory=dict)
    seconds: dict[Quantity, float] = field(default_factory=dict)
    samples: dict[Quantity, dict[float, int]] = field(default_factory=dict)
    inside: float = 0.0
    inside_told: bool = True

    def add(self, did: Interval) -> None:
        """What one more replica did."""
        self.replicas += 1
        for mine, its in ((self.grown, did.grown), (self.seconds, did.seconds)):
            for quantity, value in its.items():
                mine[quantity] = mine.get(quantity, 0.0) + value
        for quantity, samples in did.samples.items():
            counts = self.samples.setdefault(quantity, {})
            for value_s, count in samples:
                counts[value_s] = counts.get(value_s, 0) + count
        self.inside_told &= did.inside is not None
        self.inside += did.inside or 0.0

    def scale(self, factor: float) -> None:
        """Lets these replicas stand for all."""
        self.grown = {quantity: value * factor for quantity, value in self.grown.items()}
        self.seconds = {quantity: value * factor for quantity, value in self.seconds.items()}
        self.inside *= factor

    def arrived(self) -> Work | None:
        """What came; its prompts are taken to be as long as those that were completed. None: nobody can tell."""
        count, ended = self.grown.get(Q.ARRIVED), self.grown.get(Q.COMPLETED)
        if count is None:
            if ended is None or not self.inside_told:
                return None
            count = max(0.0, ended + self.grown.get(Q.FAILED, 0.0) + self.inside)
        tokens = self._first(Q.REQUEST_INPUT, Q.PROMPT_TOKENS)
        return Work(round(count), round(count * tokens / ended) if ended and tokens is not None else None)

    def completed(self) -> Work | None:
        """What was answered. Where nobody counts answers, but arrivals and their time, those."""
        count = self._first(Q.COMPLETED, Q.ARRIVED)
        if count is None:
            return None
        read, generated = (
            self._first(Q.REQUEST_INPUT, Q.PROMPT_TOKENS),
            self._first(Q.REQUEST_OUTPUT, Q.GENERATED_TOKENS),
        )
        service_s = None
        if read is None and generated is None and Q.E2E in self.seconds:
            service_s = max(0.0, self.seconds[Q.E2E] - self.seconds.get(Q.QUEUE_TIME, 0.0))
        return Work(
            round(count),
            None if read is None else round(read),
            None if generated is None else round(generated),
            service_s,
        )

    def latencies(self, quantity: Quantity) -> Samples:
        """The shortest first."""
        return tuple(sorted(self.samples.get(quantity, {}).items()))

    def _first(self, *quantities: Quantity) -> float | None:
        return next((self.grown[one] for one in quantities if one in self.grown), None)


@dataclass(slots=True)
class _Doubts:
    """Why figures may be wrong: sentences, each with the replicas that it is about."""

    about: dict[str, list[str]] = field(default_factory=dict)

    def add(self, texts: Sequence[str], name: str = "") -> None:
        for text in texts:
            self.about.setdefault(text, []).extend([name] if name else [])

    def unseen(self, unseen: Mapping[str, Watched], count: int) -> None:
        """unseen: what could not be scraped now, of `count` replicas."""
        told = unseen if len(unseen) == count else {n: one for n, one in unseen.items() if one.misses >= MISSES_MAX}
        if not told or (len(told) <= UNSEEN_MAX * count and len(unseen) < count):
            return
        reasons = sorted({one.why for one in told.values()})
        why = reasons[0] + (", and others" if len(reasons) > 1 else "")
        self.about[f"{len(told)} of {count} replicas do not tell: {why}"] = list(told)

    def __str__(self) -> str:
        return "; ".join(f"{text} ({_listed(names)})" if names else text for text, names in self.about.items())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
