"""Two readings of one server, to what it did between them. Pure.

Counters that fell, or a process that began anew, count from zero: what the old process did after the first reading is lost. A name that
changed between the readings makes the quantity unknown for this once, since the new name may count from another time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from switchgear.autoscaler.adapters.model import Kind, Quantity
from switchgear.autoscaler.adapters.scrape import Histogram, Reading
from switchgear.autoscaler.observation import Phase, ReplicaRow, Samples

Q = Quantity


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two readings. grown: of counters; a quantity that is not in it is unknown.

    samples: of latencies, as `Observation` has them. seconds: their sums. inside: by how many more (or fewer) requests are in the server;
    None: it does not tell. restarted: the process is another one. still: requests run, and nothing was generated or finished.
    """

    grown: Mapping[Quantity, float]
    samples: Mapping[Quantity, Samples]
    seconds: Mapping[Quantity, float]
    inside: float | None
    restarted: bool = False
    still: bool = False

    def part(self, share: float) -> Interval:
        """That much of it; of the latencies all, since each is of one request."""
        return replace(
            self,
            grown={quantity: value * share for quantity, value in self.grown.items()},
            seconds={quantity: value * share for quantity, value in self.seconds.items()},
            inside=None if self.inside is None else self.inside * share,
        )


def inside(reading: Reading) -> float | None:
    """Requests in the server now; None when it does not tell."""
    told = [reading.gauges[quantity] for quantity in (Q.WAITING, Q.RUNNING) if quantity in reading.gauges]
    return sum(told) if told else None


def between(before: Reading, after: Reading, gone: Collection[Quantity] = ()) -> Interval:
    """What happened from the first reading to the second, both of one server.

    gone: quantities that were told before the first reading and not in it; those that come back have counted meanwhile.
    """
    # A time that is told no more says nothing: were it another process, its counters would have fallen.
    restarted = None not in (before.start_unix_s, after.start_unix_s) and before.start_unix_s != after.start_unix_s
    grown: dict[Quantity, float] = {}
    samples: dict[Quantity, Samples] = {}
    seconds: dict[Quantity, float] = {}
    for quantity, found in after.found.items():
        known = before.found.get(quantity)
        began = known is None and after.server.lazy and quantity not in gone  # with the first request that it counts
        if found.series.kind is Kind.GAUGE or not (began or (known and known.series == found.series)):
            continue
        if found.series.kind is Kind.HISTOGRAM:
            earlier = {} if restarted else before.histograms.get(quantity, {})
            one = _merged(earlier, after.histograms[quantity])
            samples[quantity], seconds[quantity] = one.samples(), one.sum_s
        else:
            grown[quantity] = _growth({} if restarted else before.totals.get(quantity, {}), after.totals[quantity])
    for quantity, found in after.found.items():
        if found.series.kind is Kind.SUM and quantity in grown:
            seconds[quantity] = grown.pop(quantity)
            count = round(grown.get(found.series.per or quantity, 0.0))
            samples[quantity] = ((seconds[quantity] / count, count),) if count else ()
    was, now = inside(before), inside(after)
    done = [
        grown[quantity]
        for quantity in (Q.GENERATED_TOKENS, Q.COMPLETED, Q.FAILED, Q.PROMPT_TOKENS)
        if quantity in grown
    ]
    return Interval(
        grown,
        samples,
        seconds,
        None if now is None or was is None else now - (0.0 if restarted else was),
        restarted,
        Q.GENERATED_TOKENS in grown
        and not any(done)
        and min(before.gauges.get(Q.RUNNING, 0), after.gauges.get(Q.RUNNING, 0)) > 0,
    )


def row(name: str, reading: Reading, did: Interval | None, interval_s: float) -> ReplicaRow:
    """A READY replica by its newest reading and, when there is one before it, by what it did since.

    busy_s is told where both readings agree: it ran at both, or stood at both and did nothing. speed is told of a server that sleeps, in
    part or whole: one that is awake may still be throttled, of which its page does not know.
    """
    grown = did.grown if did is not None else {}
    running, awake = reading.gauges.get(Q.RUNNING), reading.gauges.get(Q.AWAKE, 1.0)
    busy_s = None
    if did is not None and running is not None and did.inside is not None:
        worked = any(grown.get(quantity) for quantity in (Q.GENERATED_TOKENS, Q.PROMPT_TOKENS, Q.COMPLETED, Q.STEPS))
        if running > 0 and (inside(reading) or 0.0) - did.inside > 0:
            busy_s = interval_s
        elif running == 0 and did.inside == 0 and not worked:
            busy_s = 0.0
    return ReplicaRow(
        name,
        Phase.READY,
        speed=awake if awake < 1.0 else None,
        waiting=_whole(reading.gauges.get(Q.WAITING)),
        running=_whole(running),
        kv_use=reading.gauges.get(Q.KV_USE),
        prefill_tokens=_whole(grown.get(Q.PROMPT_TOKENS)),
        decode_tokens=_whole(grown.get(Q.GENERATED_TOKENS)),
        busy_s=busy_s,
        steps=_whole(grown.get(Q.STEPS)),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _growth(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """A series that is new began at zero; one that fell did so again; one that is gone did nothing.

    Where all have other labels than before, somebody changed the labels, as a Prometheus does that relabels: then their sums go on.
    """
    if _relabelled(before, after):
        before, after = {"": sum(before.values())}, {"": sum(after.values())}
    return sum(value - earlier if value >= (earlier := before.get(key, 0.0)) else value for key, value in after.items())


def _relabelled(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    return bool(before) and bool(after) and before.keys().isdisjoint(after)


@dataclass(slots=True)
class _Delta:
    """counts: of each bucket, not cumulative."""

    bounds_s: tuple[float, ...]
    counts: list[float]
    sum_s: float = 0.0
    count: float = 0.0

    def samples(self) -> Samples:
        """The upper bound of a bucket stands for all in it. What is beyond the last finite bound has the mean that the sum leaves."""
        count = round(self.count)
        if not self.bounds_s:
            return ((self.sum_s / count, count),) if count else ()
        told = [(bound, round(n)) for bound, n in zip(self.bounds_s, self.counts, strict=True) if round(n)]
        if not told or told[-1][0] != math.inf:
            return tuple(told)
        beyond = told.pop()[1]
        last = self.bounds_s[-2] if len(self.bounds_s) > 1 else 0.0
        rest_s = self.sum_s - sum(bound * n for bound, n in told)
        return (*told, (max(last, rest_s / beyond), beyond))


def _merged(before: Mapping[str, Histogram], after: Mapping[str, Histogram]) -> _Delta:
    """The growth of all series together; bounds that are not those of the first series leave only its mean."""
    if _relabelled(before, after):
        before, after = {"": _summed(before.values())}, {"": _summed(after.values())}
    bounds, same = _bounds(after.values())
    made = _Delta(bounds if same else (), [0.0] * len(bounds))
    for key, one in after.items():
        earlier = before.get(key)
        if earlier is not None and (earlier.count > one.count or earlier.bounds_s != one.bounds_s):
            earlier = None  # it began anew
        made.sum_s += max(0.0, one.sum_s - (earlier.sum_s if earlier else 0.0))
        made.count += one.count - (earlier.count if earlier else 0.0)
        if same:
            low = 0.0
            for place, high in enumerate(one.counts):
                grown = high - (earlier.counts[place] if earlier else 0.0)
                made.counts[place] += max(0.0, grown - low)
                low = grown
    return made


def _bounds(parts: Collection[Histogram]) -> tuple[tuple[float, ...], bool]:
    """Those of the first part, and whether all have them."""
    bounds = next((one.bounds_s for one in parts), ())
    return bounds, all(one.bounds_s == bounds for one in parts)


def _summed(parts: Collection[Histogram]) -> Histogram:
    bounds, same = _bounds(parts)
    counts = tuple(map(sum, zip(*(one.counts for one in parts), strict=True))) if same else ()
    return Histogram(bounds if same else (), counts, sum(one.sum_s for one in parts), sum(one.count for one in parts))
