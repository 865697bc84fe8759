"""From the reports of routers and replicas to what happened in an interval. Time is passed in.

Both report totals of their process. The differences between two reports are summed up until somebody takes them, so each request and
token is in exactly one interval, however often reports come, whoever starts anew, and however many routers there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from switchgear.autoscaler.model import InFlight, Load, RouterReport, ServiceReport, Totals
from switchgear.autoscaler.observation import ARRIVALS_MAX, Samples, Work

#: A router reports twice a second; one that has been silent for so long is not known any more.
SILENT_S = 5.0
#: A router that has been gone for so long was stopped; until then its requests may come back.
GONE_S = 60.0
#: Bounds of a router's buckets of times, as `switchgear.serve.promise` has them.
FIRST_BUCKET_S = 1e-3
BUCKET_GROWTH = 1.1
BUCKET_MAX = 145
#: Estimated tokens of prompts after which their true number counts as measured, and of which the mean is made.
ESTIMATED_TOKENS_MIN = 20.0
ESTIMATED_TOKENS = 50_000.0

_COUNTS = (
    "requests",
    "tokens",
    "input_tokens",
    "estimated_tokens",
    "completed",
    "completed_input_tokens",
    "completed_output_tokens",
    "kept",
    "broken",
)
_TIMES = ("ttft", "tpot", "e2e", "wait")


@dataclass(frozen=True, slots=True)
class Done:
    """What a replica did in an interval; None: it does not tell."""

    decode_tokens: int = 0
    busy_s: float = 0.0
    prefill_tokens: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """Of one service: what happened since the interval before, and what is there now; as `Observation` has it.

    done, loads, in_flight: by replica; in_flight is the sum over routers.
    """

    queue: Work | None = None
    oldest_wait_s: float | None = None
    arrived: Work | None = None
    arrivals: tuple[tuple[float, int, int], ...] = ()
    completed: Work | None = None
    kept: int | None = None
    broken: int | None = None
    ttft_s: Samples = ()
    tpot_s: Samples = ()
    e2e_s: Samples = ()
    wait_s: Samples = ()
    done: Mapping[str, Done] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    in_flight: Mapping[str, InFlight] = field(default_factory=dict)
    blind: str = ""


@dataclass(slots=True)
class _Service:
    """counts: since the last take. arrivals: when reports told of them, requests and tokens. done: by replica.

    estimated, true: tokens of the same prompts, fading.
    """

    arrivals: list[tuple[float, int, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    times: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in _TIMES})
    done: dict[str, Done] = field(default_factory=dict)
    estimated: float = 0.0
    true: float = 0.0

    def add(self, before: Totals, now: Totals, now_s: float) -> None:
        if any(getattr(now, name) < getattr(before, name) for name in _COUNTS):
            before = Totals()  # the router forgot the service meanwhile and counts anew
        for name in _COUNTS:
            self.counts[name] += getattr(now, name) - getattr(before, name)
        if came := now.requests - before.requests:
            self.arrivals.append((now_s, came, now.input_tokens - before.input_tokens))
        if len(self.arrivals) > ARRIVALS_MAX:
            self.arrivals = _halved(self.arrivals)
        for name in _TIMES:
            old: Mapping[int, int] = getattr(before, name)
            grown = {at: count - old.get(at, 0) for at, count in getattr(now, name).items()}
            self.times[name].update({at: count for at, count in grown.items() if count > 0})
        self.estimated += now.estimated_tokens - before.estimated_tokens
        self.true += now.completed_input_tokens - before.completed_input_tokens
        if self.estimated > ESTIMATED_TOKENS:
            self.estimated, self.true = self.estimated / 2, self.true / 2

    @property
    def worth(self) -> float:
        """True tokens of a prompt for each estimated one."""
        return self.true / self.estimated if self.estimated >= ESTIMATED_TOKENS_MIN else 1.0


@dataclass(slots=True)
class _Router:
    seen_s: float
    report: RouterReport
    #: By service, also of those that it does not name now.
    totals: dict[str, Totals]
    gone: bool = False


class Meter:
    """Takes every report, and gives what is known of a service."""

    def __init__(self) -> None:
        self._routers: dict[str, _Router] = {}
        self._loads: dict[str, Load] = {}
        #: The newest report of each replica, also of those that are not connected now.
        self._last: dict[str, Load] = {}
        self._services: dict[str, _Service] = {}

    def router(self, instance: str, report: RouterReport, now_s: float) -> None:
        """A router has reported."""
        router = self._routers.get(instance)
        if router is None:
            # What it counted before we knew it did not happen now.
            totals = {name: service.totals for name, service in report.services.items()}
            self._routers[instance] = _Router(now_s, report, totals)
            return
        router.report, router.seen_s, router.gone = report, now_s, False
        for name, service in report.services.items():
            self._of(name).add(router.totals.get(name, Totals()), service.totals, now_s)
            router.totals[name] = service.totals

    def router_gone(self, instance: str, now_s: float) -> None:
        """The stream of a router has ended; it may come back."""
        if router := self._routers.get(instance):
            router.gone, router.seen_s = True, now_s

    def replica(self, service: str, replica: str, load: Load) -> None:
        """A replica has reported."""
        before = self._last.get(replica)
        self._loads[replica] = self._last[replica] = load
        if before is None or before.instance != load.instance:
            return  # of a process that has just started there is nothing to be told yet
        done = self._of(service).done
        done[replica] = _added(done.get(replica, Done()), before, load)

    def replica_gone(self, replica: str) -> None:
        """The stream of a replica has ended."""
        self._loads.pop(replica, None)

    def forget(self, services: Iterable[str], replicas: Iterable[str], now_s: float) -> None:
        """Keeps what is known of these services and replicas alone, and no router that has been gone for long."""
        kept, live = set(services), set(replicas)
        self._services = {name: one for name, one in self._services.items() if name in kept}
        self._last = {name: load for name, load in self._last.items() if name in live or name in self._loads}
        for router in self._routers.values():
            router.totals = {name: totals for name, totals in router.totals.items() if name in kept}
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

    def held(self, service: str) -> int:
        """Requests that connected routers hold for want of a replica."""
        return sum(one.held_requests for one in self._reports(service))

    def take(self, service: str, now_s: float) -> Interval:
        """What happened since the last call for this service; what is taken is gone."""
        found = self._of(service)
        counts, times, done, worth = found.counts, found.times, found.done, found.worth
        self._services[service] = _Service(estimated=found.estimated, true=found.true)
        reports = self._reports(service)
        in_flight = _in_flight(reports)
        loads = {name: load for name, load in self._loads.items() if name.startswith(f"{service}/")}
        blind = self._blind(now_s)
        for replica in in_flight:
            if replica not in loads:
                blind = blind or f"{replica} has requests and does not report"
        if not any(not router.gone for router in self._routers.values()):
            return Interval(done=done, loads=loads, blind=blind)
        held_input = sum(one.held_input_tokens for one in reports)
        return Interval(
            queue=Work(
                sum(one.held_requests for one in reports),
                round(held_input * worth),
                max(0, sum(one.held_tokens for one in reports) - held_input),
            ),
            oldest_wait_s=max((one.oldest_wait_s for one in reports), default=0.0),
            arrived=Work(
                counts["requests"],
                round(counts["input_tokens"] * worth),
                max(0, counts["tokens"] - counts["input_tokens"]),
            ),
            arrivals=tuple((now_s - at_s, count, round(tokens * worth)) for at_s, count, tokens in found.arrivals),
            completed=Work(counts["completed"], counts["completed_input_tokens"], counts["completed_output_tokens"]),
            kept=counts["kept"],
            broken=counts["broken"],
            ttft_s=_samples(times["ttft"]),
            tpot_s=_samples(times["tpot"]),
            e2e_s=_samples(times["e2e"]),
            wait_s=_samples(times["wait"]),
            done=done,
            loads=loads,
            in_flight=in_flight,
            blind=blind,
        )

    def _of(self, service: str) -> _Service:
        return self._services.setdefault(service, _Service())

    def _reports(self, service: str) -> list[ServiceReport]:
        found = (router.report.services.get(service) for router in self._routers.values() if not router.gone)
        return [report for report in found if report is not None]

    def _blind(self, now_s: float) -> str:
        if all(router.gone for router in self._routers.values()):
            return "no router reports"
        if self.router_missing():
            return "a router has gone a moment ago"
        if any(now_s - router.seen_s > SILENT_S for router in self._routers.values()):
            return "a router has fallen silent"
        return ""


def _added(done: Done, before: Load, now: Load) -> Done:
    tokens, busy_s = now.tokens_total - before.tokens_total, now.busy_s_total - before.busy_s_total
    if tokens < 0 or busy_s < 0:
        return done  # no total goes back: whatever this is, it is no work
    return Done(
        done.decode_tokens + tokens,
        done.busy_s + busy_s,
        _sum(done.prefill_tokens, before.prompt_tokens_total, now.prompt_tokens_total),
        _sum(done.steps, before.steps_total, now.steps_total),
    )


def _sum(so_far: int | None, before: int | None, now: int | None) -> int | None:
    if before is None or now is None:
        return so_far
    return (so_far or 0) + max(0, now - before)


def _halved(arrivals: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Neighbours together, at the time of the later one."""
    rest = arrivals[-1:] if len(arrivals) % 2 else []
    pairs = zip(arrivals[::2], arrivals[1::2], strict=False)
    return [(at_s, a + b, x + y) for (_, a, x), (at_s, b, y) in pairs] + rest


def _in_flight(reports: Iterable[ServiceReport]) -> dict[str, InFlight]:
    found: dict[str, InFlight] = {}
    for report in reports:
        for replica, one in report.in_flight.items():
            other = found.get(replica, InFlight(0, 0))
            found[replica] = InFlight(other.requests + one.requests, other.tokens + one.tokens)
    return found


def _samples(counted: Counter[int]) -> Samples:
    return tuple((FIRST_BUCKET_S * BUCKET_GROWTH**at, count) for at, count in sorted(counted.items()))
