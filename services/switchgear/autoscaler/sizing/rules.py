"""Rules of sizing, and what each would have done on the requests that really came.

No single margin keeps a promise at the lowest cost on all traffic: what suffices for a steady stream breaks under bursts, and what survives
bursts is waste on a steady stream. So every rule of a family runs beside the real fleet on a fleet that might have been (`twin.py`), with the
measured starts, and the policy follows the cheapest of those that would have kept the promise ("tracking the best expert", Herbster and
Warmuth, Machine Learning 32, 1998; here with the promise as a constraint).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from switchgear.autoscaler.sizing.twin import Twin


class Ahead(StrEnum):
    """What a rule takes for the level."""

    NOW = "NOW"  # the mean of two minutes: it follows no burst, so less stays idle and more waits
    TREND = "TREND"  # what bursts bring now, and what will arrive when a replica asked for now is ready
    PATTERN = "PATTERN"  # the same by the days and weeks before


@dataclass(frozen=True, slots=True)
class Rule:
    """`margin` times the level and `extra` replicas, with the highest level of `window_s` on the way down. least: replicas that always stay."""

    margin: float
    window_s: float
    ahead: Ahead
    extra: int = 0
    least: int = 1

    def hoped(self, level: float) -> float:
        """Fraction of requests that a fleet sized so breaks, before anything is seen: as one hopes. Who goes to zero has to prove himself."""
        return _guess(self._times(level), _HOPED) if self.least else 1.0

    def feared(self, level: float) -> float:
        """The same as one fears."""
        smoothed = _SMOOTHED if self.ahead is Ahead.NOW else 1.0
        return _guess(self._times(level) / smoothed, _FEARED) if self.least else 1.0

    def _times(self, level: float) -> float:
        return self.margin + self.extra / max(level, 1.0)


#: On the way down this fraction more than needed must stay idle, or one replica of noise would go and come.
SPARE = 0.05
#: A replica that was asked for stays as long as so many starts take, within bounds: who lets go what he needs again pays a start and breaks the
#: promise while it lasts. Peers call a change of mind within five minutes a flap.
STAY_STARTS, STAY_S, STAY_S_MAX = 20.0, 300.0, 600.0
#: What waits is to be done within this after replicas that are asked for now are ready.
DRAIN_S = 30.0

#: Fractions of requests that fleets of these margins break, before anything is seen: as one hopes, and as one fears.
_HOPED = ((0.8, 0.1), (0.9, 0.05), (1.0, 0.02), (1.1, 0.0065), (1.2, 0.004), (1.35, 0.002), (1.5, 0.001))
_FEARED = ((0.9, 0.1), (1.0, 0.05), (1.1, 0.02), (1.2, 0.01), (1.35, 0.006), (1.5, 0.003), (1.75, 0.001))
#: Who goes down by a mean of two minutes fears as much as with a margin so many times lower.
_SMOOTHED = 1.15
#: Replicas on top of the level: a burst is of so many requests, however many come otherwise.
_EXTRAS = (1, 2, 3, 5, 8, 12, 20)


def _guess(margin: float, table: Sequence[tuple[float, float]]) -> float:
    return next((broken for known, broken in table if margin <= known), 0.0)


def _family() -> tuple[Rule, ...]:
    fine = (1.0, 1.1, 1.2, 1.35, 1.5)
    forms = (
        (Ahead.NOW, 120.0, (0.8, 0.9, *fine)),
        (Ahead.NOW, 300.0, fine),
        (Ahead.TREND, 300.0, (*fine, 2.1, 3.3, 5.5, 10.0)),
        (Ahead.TREND, 1800.0, (1.0, 1.5, 2.1, 3.3)),
        (Ahead.TREND, 28800.0, (1.0, 1.1, 1.2, 1.5, 2.1, 2.6, 3.3)),
        (Ahead.PATTERN, 300.0, (1.0, 1.1, 1.35)),
    )
    margins = [Rule(margin, window_s, ahead) for ahead, window_s, margins in forms for margin in margins]
    extras = [Rule(1.0, 1800.0, Ahead.TREND, extra=extra) for extra in _EXTRAS]
    # To zero: only where waiting for a start keeps the promise often enough.
    zeros = [Rule(1.2, 300.0, Ahead.TREND, least=0), Rule(2.1, 1800.0, Ahead.TREND, least=0)]
    return (*margins, *extras, *zeros)


RULES = _family()
WINDOWS_S = sorted({rule.window_s for rule in RULES})


@dataclass(frozen=True, slots=True)
class Levels:
    """In replicas that the work takes. now: what comes. ahead: what a rule takes for the level. peak: the highest of it, by window too.

    short: mean of the last minute. per_replica: seconds of work that a replica does in a second. start_s: until one that is asked for now is ready.
    jump: what comes at this moment, if that is more than ever; else 0.
    """

    now: float
    ahead: dict[Ahead, float]
    peak: dict[tuple[Ahead, float], float]
    short: float
    per_replica: float
    start_s: float
    jump: float = 0.0

    def stay_s(self, rule: Rule) -> float:
        """How long a replica that was asked for stays; the least where the level is smooth."""
        if rule.ahead is Ahead.NOW:
            return STAY_S
        return min(STAY_S_MAX, max(STAY_S, STAY_STARTS * self.start_s))


def wanted(rule: Rule, levels: Levels, backlog_s: float) -> tuple[int, int]:
    """At least so many, and so many before one may go. backlog_s: work that waits beyond what the promise allows."""
    drain = (levels.short + backlog_s / (levels.per_replica * (levels.start_s + DRAIN_S))) if backlog_s > 0 else 0.0
    need = _ceil(max(rule.margin * levels.ahead[rule.ahead] + rule.extra, drain))
    keep = _ceil(rule.margin * (1 + SPARE) * levels.peak[rule.ahead, rule.window_s] + rule.extra)
    return max(need, rule.least), max(keep, need, rule.least)


@dataclass(slots=True)
class Shadow:
    """A rule and the fleet that it would have. kept: requests that it would have served on time. replica_s: what it would have cost."""

    rule: Rule
    twin: Twin
    kept: float = 0.0
    replica_s: float = 0.0
    changed_s: float = -math.inf

    def follow(self, levels: Levels, now_s: float, spare_s: float, cold_start_s: Callable[[], float]) -> None:
        """spare_s: for how long work may wait within the promise."""
        size = self.twin.size
        need, keep = wanted(self.rule, levels, self.twin.backlog_s(now_s) - spare_s * size)
        if need > size:
            self.twin.resize(need, now_s, cold_start_s)
            self.changed_s = now_s
        elif keep < size and now_s - self.changed_s >= levels.stay_s(self.rule):
            self.twin.resize(keep, now_s, cold_start_s)


@dataclass(frozen=True, slots=True)
class Choice:
    """up: the rule that says how many are needed. hold: the one that says how many must stay; it has proven itself longer."""

    up: Rule
    hold: Rule


@dataclass(frozen=True, slots=True)
class Evidence:
    """offered: requests that all rules were offered, faded as `Shadow.kept` is. span_s: in how much time. objective: the fraction that must keep
    the promise. level: replicas that the work of now takes. unforeseen: the fraction that the real fleet broke beyond what its twin did. broken: the fraction that it broke in all; what
    is too much of it is to be made good."""

    offered: float
    span_s: float
    objective: float
    level: float
    unforeseen: float
    broken: float


def choose(shadows: Sequence[Shadow], seen: Evidence) -> Choice:
    """The cheapest rules that would have kept the promise."""
    budget = 1 - seen.objective
    left = budget * ALLOWED - seen.broken
    if left > 0:
        left *= seen.span_s / (seen.span_s + UNSPENT_S)
    allowed = max(budget * ALLOWED - seen.unforeseen + min(0.0, left), budget * ALLOWED_LEAST)
    allowed = min(allowed + max(0.0, left), budget)
    return Choice(
        _cheapest(
            [(one, one.rule.hoped(seen.level)) for one in shadows],
            seen.offered,
            allowed,
            HOPED_S / max(seen.span_s, 1.0),
            CHANCE,
        ),
        _cheapest(
            [(one, one.rule.feared(seen.level)) for one in shadows],
            seen.offered,
            allowed,
            FEARED_S / (seen.span_s + STAY_S),
        ),
    )


#: Of the requests that may break the promise, the part that rules may plan with.
ALLOWED, ALLOWED_LEAST = 0.8, 0.3
#: What the real fleet did not break of that may be spent too, half of it after so long: a quiet hour says little of the next one.
UNSPENT_S = 4 * 3600.0
#: A guess counts as much as what was seen in so much time. A cluster of late requests in the first minutes is no reason to double the
#: fleet; its absence is none to halve it.
HOPED_S, FEARED_S = 1800.0, 900.0
#: Who goes up wants more than chance, in standard deviations of the count of broken requests: where requests are rare, one of them is a percent of a day's.
CHANCE = 1.0


#: A rule is as dear as it was, and as it is now for so long again: ten times the night's level was cheap at night.
COMING_S = 1800.0
#: Of requests.
NEAR = 0.003


def _cheapest(
    shadows: Sequence[tuple[Shadow, float]], offered: float, allowed: float, prior: float, chance: float = 0.0
) -> Rule:
    """shadows: with the guess for each. prior: what the guess weighs, in units of what was seen. chance: standard deviations to be let off."""
    broken = [
        (max(0.0, offered - one.kept) / max(offered, 1e-9) + guess * prior) / (1 + prior) for one, guess in shadows
    ]
    broken = [max(0.0, lost - chance * math.sqrt(lost / max(offered, 1.0))) for lost in broken]
    # When none would have kept it, a little worse than the best is good enough: nobody pays tenfold for the last of what is lost anyway.
    limit = max(allowed, min(broken) + NEAR)
    return min((one for (one, _), lost in zip(shadows, broken, strict=True) if lost <= limit), key=_cost).rule


def _cost(one: Shadow) -> float:
    return one.replica_s + one.twin.size * COMING_S


def _ceil(replicas: float) -> int:
    return math.ceil(min(replicas, 1e6) - 1e-9)
