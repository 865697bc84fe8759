"""The rules beside the real fleet: what each would have had, what it would have kept, and which are to be followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

from switchgear.autoscaler.observation import Observation
from switchgear.autoscaler.sizing.means import Came
from switchgear.autoscaler.sizing.rules import HOPED_S, RULES, Evidence, Levels, Rule, Shadow, choose
from switchgear.autoscaler.sizing.steps import Steps
from switchgear.autoscaler.sizing.twin import Arrival, Twin

#: Half of what was seen is forgotten in the longer of these: services change within days, and rare requests must be remembered.
HALF_LIFE_S, HALF_LIFE_REQUESTS = 12 * 3600.0, 20_000.0

#: From so many replicas on single requests are nothing to a fleet: they are offered many at a time, to servers that stand for many.
LARGE, LARGE_ENTRIES_MAX, LARGE_SERVERS_MAX = 100, 20, 16
SERVERS_MAX = 128

#: Tells rules by what they do; guesses may change.
_FAMILY = crc32(
    repr([(rule.margin, rule.window_s, str(rule.ahead), rule.extra, rule.least) for rule in RULES]).encode()
)


class Experts:
    """Shadows of all rules, and a twin of the real fleet, which shows how far twins are to be believed."""

    #: Arrivals that are offered in one interval.
    ENTRIES_MAX = 60

    def __init__(self) -> None:
        self._shadows = [Shadow(rule, Twin(0, 0.0)) for rule in RULES]
        self._real = Twin(0, 0.0)
        #: Of the twins; none before the first observation.
        self._slots, self._large = 0, False
        # Faded: requests that all were offered, the time of that; real requests that ended, were broken, and were so by the real fleet's twin.
        self._offered = self._span_s = self._ended = self._broken = self._missed = 0.0
        self.choice: tuple[Rule, Rule] = (RULES[0], RULES[0])

    def step(
        self,
        now_s: float,
        seen: Observation,
        *,
        came: Sequence[Came],
        output_tokens: float,
        steps: Steps,
        levels: Levels,
        spare_s: float,
        ended_and_broken: tuple[int, int],
        cold_start_s: Callable[[], float],
    ) -> None:
        """One interval. output_tokens: expected of an answer. spare_s: for how long a request may wait within the promise.

        ended_and_broken: real requests.
        """
        total = sum([one.requests for one in came])
        slots = steps.slots if steps.service_s is not None else 1
        large = seen.desired >= (LARGE / 2 if self._large else LARGE)
        if (slots, large) != (self._slots, self._large):
            self._begin(now_s, seen, slots, large=large)
        offers = _offers(came, total / (LARGE_ENTRIES_MAX if self._large else self.ENTRIES_MAX), output_tokens)
        fade = 0.5 ** min(seen.interval_s / HALF_LIFE_S, total / HALF_LIFE_REQUESTS + 1e-6 * seen.interval_s)
        for one in self._shadows:
            one.kept = one.kept * fade + one.twin.offer(offers, steps, seen.slo)
            one.replica_s = one.replica_s * fade + one.twin.size * seen.interval_s
            one.follow(levels, now_s, spare_s, cold_start_s)
        missed = total - self._real.offer(offers, steps, seen.slo)
        if self._real.size != seen.desired:
            self._real.resize(seen.desired, now_s, cold_start_s)
        self._offered = self._offered * fade + total
        self._span_s = self._span_s * fade + seen.interval_s
        ended, broken = ended_and_broken
        self._missed = self._missed * fade + (missed if ended else 0.0)
        self._ended = self._ended * fade + ended
        self._broken = self._broken * fade + broken
        self._choose(seen.slo.objective, levels.now)

    def memory(self) -> dict[str, object]:
        """For `restored`; by the position of the rule."""
        return {
            "rules": _FAMILY,
            "shadows": [(one.kept, one.replica_s) for one in self._shadows],
            "counts": (self._offered, self._span_s, self._ended, self._broken, self._missed),
        }

    @classmethod
    def restored(cls, memory: Mapping[str, Any]) -> Experts:
        """What was seen of rules; their fleets begin anew. What was seen of other rules says nothing of these."""
        experts = cls()
        if memory["rules"] != _FAMILY:
            return experts
        for one, (kept, replica_s) in zip(experts._shadows, memory["shadows"], strict=True):
            one.kept, one.replica_s = kept, replica_s
        experts._offered, experts._span_s, experts._ended, experts._broken, experts._missed = memory["counts"]
        return experts

    def _choose(self, objective: float, level: float) -> None:
        # What ended weighs against as much time as a guess does: a few late requests in the first minutes are no rate.
        weighed = self._ended + self._offered * HOPED_S / max(self._span_s, 1.0) + 1e-9
        unforeseen = max(0.0, self._broken - self._missed) / weighed
        found = choose(
            self._shadows, Evidence(self._offered, self._span_s, objective, level, unforeseen, self._broken / weighed)
        )
        self.choice = (found.up, found.hold)

    def _begin(self, now_s: float, seen: Observation, slots: int, *, large: bool) -> None:
        self._slots, self._large = slots, large
        servers_max = LARGE_SERVERS_MAX if large else SERVERS_MAX
        self._real = Twin(seen.desired, now_s, slots, servers_max)
        for one in self._shadows:
            one.twin = Twin(max(seen.desired, one.rule.least), now_s, slots, servers_max)
            one.changed_s = now_s


def _offers(came: Sequence[Came], together: float, output_tokens: float) -> list[Arrival]:
    """together: at least so many requests are one arrival; 1 or less: one by one."""
    offers: list[Arrival] = []
    requests = tokens = 0.0
    for one in came:
        if together <= 1:
            count = max(1, round(one.requests))
            offers += [Arrival(one.at_s, one.input_tokens / one.requests, output_tokens, one.requests / count)] * count
            continue
        requests, tokens = requests + one.requests, tokens + one.input_tokens
        if requests >= together:
            offers.append(Arrival(one.at_s, tokens / requests, output_tokens, requests))
            requests = tokens = 0.0
    if requests:
        offers.append(Arrival(came[-1].at_s, tokens / requests, output_tokens, requests))
    return offers
