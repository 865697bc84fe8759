"""One replica, scrape after scrape: what it did since its last reading, and why its figures may be wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from switchgear.autoscaler.adapters.interval import Interval, between
from switchgear.autoscaler.adapters.model import Kind, Quantity
from switchgear.autoscaler.adapters.scrape import SIZING, Reading

Q = Quantity

#: Longer than any prompt takes to be read, during which nothing is generated either, and than most who store pages keep one.
STILL_S = 60.0
#: What a policy can do without as soon as it is gone; the loss of anything else makes it blind.
_SPARE = frozenset({Q.STEPS, Q.KV_TOKENS, Q.SEQUENCES_MAX, Q.AWAKE, Q.REQUEST_INPUT, Q.REQUEST_OUTPUT})


@dataclass(frozen=True, slots=True)
class Step:
    """did: None when there is nothing to compare with. since_s: how long it took. doubts: sentences; empty: all is seen."""

    did: Interval | None
    since_s: float
    doubts: tuple[str, ...]


@dataclass(slots=True)
class Watched:
    """reading: the newest, of `at_s`. misses: scrapes in a row that failed since, the last one as `why` says.

    names: the series that told each quantity last, also of those that are gone.
    """

    at_s: float = 0.0
    reading: Reading | None = None
    misses: int = 0
    why: str = ""
    names: dict[Quantity, str] = field(default_factory=dict)
    still_since_s: float | None = None

    def miss(self, why: str) -> None:
        """It could not be scraped."""
        self.misses, self.why = self.misses + 1, why

    def take(self, now: Reading, at_s: float) -> Step:
        """Takes the reading, later than the one before, for the newest."""
        before, since_s = self.reading, at_s - self.at_s
        if before is not None and before.server.name != now.server.name:
            before, self.names = None, {}  # another server has its place
        names = {quantity: found.series.name for quantity, found in now.found.items()}
        gone = {q for q in self.names if before is not None and q not in before.found}
        doubts = [
            f"{old} vanished; {new} is there now and is used" if new else _farewell(now, old)
            for old, new in self._changes(now)
        ]
        doubts += sorted({f"{names[q]} is back and counts from now on" for q in (gone & names.keys()) - _SPARE})
        if not doubts and not now.usable and not now.server.lazy and not now.server.front:
            lacking = ", ".join(now.server.series[quantity][0].name for quantity in now.missing if quantity in SIZING)
            doubts.append(f"its page lacks {lacking or 'what sizing needs'}")
        did = None
        if before is not None and since_s > 0:
            did = between(before, now, gone)
            doubts += self._standing(before, now, did, at_s)
        self.reading, self.at_s, self.misses = now, at_s, 0
        self.names |= names
        return Step(did, since_s, tuple(doubts))

    def _changes(self, now: Reading) -> Iterable[tuple[str, str]]:
        """Each name that told something and is gone from the page, once, with what tells it now."""
        gone = (
            (quantity, old)
            for quantity, old in self.names.items()
            if quantity not in _SPARE and _lost(now, quantity, old)
        )
        return {old: now.found[q].series.name if q in now.found else "" for q, old in gone}.items()

    def _standing(self, before: Reading, now: Reading, did: Interval, at_s: float) -> list[str]:
        stored = now.stamp_s is not None and now.stamp_s == before.stamp_s
        if not did.still and not stored:
            self.still_since_s = None
            return []
        if self.still_since_s is None:
            self.still_since_s = self.at_s
        still_s = at_s - self.still_since_s
        if still_s < STILL_S:
            return []
        if stored:
            return [f"the times on its page stand still for {still_s:.0f} s: somebody stored it"]
        return [f"it runs requests and has generated nothing for {still_s:.0f} s: it hangs, or its page does"]


def _farewell(now: Reading, name: str) -> str:
    return f"{name} is there and has no figure that can be read" if now.has(name) else f"{name} vanished"


def _lost(now: Reading, quantity: Quantity, name: str) -> bool:
    """Whether the series that told the quantity does so no more: it is gone, or has no figure (NaN), or its labels have other names.

    Counters of some labels alone, as of requests that failed, are there again with the first that they count after a restart.
    """
    if not now.has(name):
        return True
    if quantity in now.found:
        return False
    return any(
        series.name == name and (series.kind is Kind.GAUGE or (series.where is None and series.without is None))
        for series in now.server.series.get(quantity, ())
    )
