"""From the reports of routers and replicas to the demand of a service. Time is passed in.

Routers count work as tokens of the prompt plus the most that may be generated, since no more is known of a request that has just
come; replicas count what they generate. What a router's token is worth in generated ones is measured, so that demand and capacity
have one unit: generated tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from switchgear.autoscaler.model import Load, RouterReport, ServiceReport

#: Arrivals are a mean over this: long enough to smooth bursts of single requests, short against the start of a replica.
WINDOW_S = 10.0
#: Totals are kept this far apart at least, which bounds them however often a router reports.
SAMPLE_S = 0.4
#: A router reports twice a second; one that has been silent for so long is not known any more.
SILENT_S = 5.0
#: A router that has been gone for so long was stopped; until then its requests may come back.
GONE_S = 60.0
#: Saturated seconds after which the capacity of a replica counts as measured, and of which the mean is made.
CAPACITY_S_MIN = 3.0
CAPACITY_S = 120.0
#: Tokens of answered requests after which their worth counts as measured, and of which the mean is made.
WORTH_TOKENS_MIN = 200.0
WORTH_TOKENS = 50_000.0
#: A wrong measurement must not hide demand.
WORTH_MIN = 0.02


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one service now, in generated tokens.

    blind: why the figures may be too low; empty when they are complete. capacity_tokens_per_s: what one replica does when it has
    all it can take; None until measured.
    """

    arriving_tokens_per_s: float = 0.0
    #: Tokens of requests that no replica works on: held by routers or queued in replicas.
    waiting_tokens: float = 0.0
    held_requests: int = 0
    in_flight_requests: int = 0
    capacity_tokens_per_s: float | None = None
    blind: str = ""


@dataclass(slots=True)
class _Mean:
    """A ratio of sums in which the past fades: both are halved when the lower one exceeds `fade`."""

    known_from: float
    fade: float
    upper: float = 0.0
    lower: float = 0.0

    def add(self, upper: float, lower: float, *, lead_max: float = math.inf) -> None:
        """lead_max: by how much the upper sum may exceed the lower one; what is beyond is forgotten."""
        self.lower += lower
        self.upper = min(self.upper + upper, self.lower + lead_max)
        if self.lower > self.fade:
            self.upper, self.lower = self.upper / 2, self.lower / 2

    @property
    def value(self) -> float | None:
        return self.upper / self.lower if self.lower >= self.known_from else None


@dataclass(slots=True)
class _Measured:
    """What is measured of a service."""

    capacity: _Mean = field(default_factory=lambda: _Mean(CAPACITY_S_MIN, CAPACITY_S))
    worth: _Mean = field(default_factory=lambda: _Mean(WORTH_TOKENS_MIN, WORTH_TOKENS))


@dataclass(slots=True)
class _Arrivals:
    """Totals of one router for one service: the newest before the window, and those in it."""

    totals: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now_s: float, total: int) -> None:
        totals = self.totals
        if len(totals) > 1 and now_s - totals[-2][0] < SAMPLE_S:
            totals.pop()
        totals.append((now_s, total))
        while len(totals) > 1 and totals[1][0] <= now_s - WINDOW_S:
            totals.popleft()

    def per_s(self, now_s: float) -> float:
        before = [total for time_s, total in self.totals if time_s <= now_s - WINDOW_S]
        base = before[-1] if before else self.totals[0][1]
        return (self.totals[-1][1] - base) / WINDOW_S


@dataclass(slots=True)
class _Router:
    seen_s: float
    report: RouterReport = field(default_factory=RouterReport)
    arrivals: dict[str, _Arrivals] = field(default_factory=dict)
    gone: bool = False


class Meter:
    """Takes every report, and says what the demand is."""

    def __init__(self) -> None:
        self._routers: dict[str, _Router] = {}
        self._loads: dict[str, Load] = {}
        self._measured: dict[str, _Measured] = {}

    def router(self, instance: str, report: RouterReport, now_s: float) -> None:
        """A router has reported."""
        router = self._routers.get(instance)
        first = router is None or router.gone
        if router is None:
            router = self._routers[instance] = _Router(now_s)
        before, router.report, router.seen_s, router.gone = router.report, report, now_s, False
        router.arrivals = {name: kept for name, kept in router.arrivals.items() if name in report.services}
        for name, service in report.services.items():
            arrivals = router.arrivals.get(name)
            if arrivals is None:
                # What it counted before we knew it is no arrival of now; a service that it names later is new to it.
                arrivals = router.arrivals[name] = _Arrivals()
                arrivals.add(now_s, service.tokens_total if first else 0)
            arrivals.add(now_s, service.tokens_total)
            if not first and name in before.services:
                self._ended_work(name, before.services[name], service)

    def router_gone(self, instance: str, now_s: float) -> None:
        """The stream of a router has ended; it may come back."""
        if router := self._routers.get(instance):
            router.gone, router.seen_s = True, now_s

    def replica(self, service: str, replica: str, load: Load) -> None:
        """A replica has reported."""
        before = self._loads.get(replica)
        self._loads[replica] = load
        if before is None or before.instance != load.instance:
            return
        tokens, busy_s = load.tokens_total - before.tokens_total, load.busy_s_total - before.busy_s_total
        if tokens < 0 or busy_s < 0:
            return
        measured = self._measured.setdefault(service, _Measured())
        # Generated for requests that will end, as far as is known: what belongs to those that are given up cannot be told apart. It
        # makes tokens look worth more, up to their whole number, and is soon outweighed.
        measured.worth.add(tokens, 0, lead_max=WORTH_TOKENS)
        # Only a replica that had more than it could take shows what it can do: a half-empty batch would look like a slow replica.
        if before.waiting_requests and load.waiting_requests:
            measured.capacity.add(tokens, busy_s)

    def replica_gone(self, replica: str) -> None:
        """The stream of a replica has ended."""
        self._loads.pop(replica, None)

    def forget(self, services: Iterable[str], now_s: float) -> None:
        """Keeps what is measured of these services alone, and no router that has been gone for long."""
        self._measured = {name: self._measured[name] for name in services if name in self._measured}
        self._routers = {
            instance: router
            for instance, router in self._routers.items()
            if not (router.gone and now_s - router.seen_s > GONE_S)
        }

    def loads(self) -> Mapping[str, Load]:
        """The newest reports of connected replicas."""
        return dict(self._loads)

    def routers(self) -> tuple[RouterReport, ...]:
        """The newest reports of connected routers."""
        return tuple(router.report for router in self._routers.values() if not router.gone)

    def router_missing(self) -> bool:
        """Whether a router has gone that may come back, or only lost us: it may go by an old table."""
        return any(router.gone for router in self._routers.values())

    def demand(self, service: str, now_s: float) -> Demand:
        """What is known of the demand now."""
        measured = self._measured.get(service, _Measured())
        worth = min(1.0, max(WORTH_MIN, measured.worth.value or 1.0))
        blind = self._blind(now_s)
        arriving, waiting, held, in_flight = 0.0, 0.0, 0, 0
        for router in self._routers.values():
            report = None if router.gone else router.report.services.get(service)
            if report is None:
                continue
            arriving += router.arrivals[service].per_s(now_s)
            waiting += report.held_tokens
            held += report.held_requests
            for replica, work in report.in_flight.items():
                in_flight += work.requests
                load = self._loads.get(replica)
                if load is None:
                    blind = blind or f"{replica} has requests and does not report"
                elif requests := load.running_requests + load.waiting_requests:
                    waiting += work.tokens * load.waiting_requests / requests
        return Demand(arriving * worth, waiting * worth, held, in_flight, measured.capacity.value, blind)

    def _ended_work(self, service: str, before: ServiceReport, now: ServiceReport) -> None:
        """What has been answered since the router's last report: what else has left it says nothing of what answers take."""
        left = (now.tokens_total - before.tokens_total) - (now.backlog_tokens - before.backlog_tokens)
        answered = left - (now.unanswered_tokens_total - before.unanswered_tokens_total)
        if answered > 0:
            self._measured.setdefault(service, _Measured()).worth.add(0, answered)

    def _blind(self, now_s: float) -> str:
        if all(router.gone for router in self._routers.values()):
            return "no router reports"
        if self.router_missing():
            return "a router has gone a moment ago"
        if any(now_s - router.seen_s > SILENT_S for router in self._routers.values()):
            return "a router has fallen silent"
        return ""
