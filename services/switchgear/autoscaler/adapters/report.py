"""What two readings of a server show to a person: what is found, what it says now, what is missing and what that costs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.autoscaler.adapters.interval import Interval, between
from switchgear.autoscaler.adapters.model import COST, Kind, Quantity, Server
from switchgear.autoscaler.adapters.scrape import Found, Reading
from switchgear.autoscaler.adapters.table import SERVERS
from switchgear.autoscaler.observation import Samples

Q = Quantity

#: Without the others a policy does as well, unless the server can tell them.
_WANTED_OF_ALL = (
    *(Q.WAITING, Q.RUNNING, Q.KV_USE),
    *(Q.TTFT, Q.TPOT, Q.E2E, Q.QUEUE_TIME),
    *(Q.COMPLETED, Q.FAILED, Q.PROMPT_TOKENS, Q.GENERATED_TOKENS),
)
_SHARES = frozenset({Q.KV_USE, Q.AWAKE})
_TOKENS = frozenset({Q.PROMPT_TOKENS, Q.GENERATED_TOKENS, Q.REQUEST_INPUT, Q.REQUEST_OUTPUT, Q.KV_TOKENS})


@dataclass(frozen=True, slots=True)
class Told:
    """A quantity that the page tells. type: of the page; the table's when it does not say. unit: base unit. now: what it says, for people.

    value: of a gauge; the growth a second of a counter; the mean of a latency in the interval; None: nothing happened, or there is
    nothing to compare with. mismatch: how the page contradicts the table, as a sentence.
    """

    quantity: Quantity
    series: str
    type: str
    unit: str
    now: str
    value: float | None
    mismatch: str


@dataclass(frozen=True, slots=True)
class Lack:
    """A quantity that the page does not tell. series: names that would; empty: this kind of server has none. remedy: empty: there is none."""

    quantity: Quantity
    series: tuple[str, ...]
    cost: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """usable: whether a policy can size a service by what is told."""

    server: Server
    version: str
    told: tuple[Told, ...]
    lacks: tuple[Lack, ...]
    rejected: tuple[str, ...]
    usable: bool
    verdict: str


def report(before: Reading, after: Reading, interval_s: float) -> Report:
    """What the two readings show. interval_s: between them; above 0."""
    server, did = after.server, between(before, after)
    told = tuple(_told(quantity, found, after, did, interval_s) for quantity, found in after.found.items())
    wanted = dict.fromkeys((*_WANTED_OF_ALL, *server.series))
    lacks = tuple(_lack(quantity, server) for quantity in wanted if quantity not in after.found)
    return Report(
        server,
        after.version,
        told,
        lacks,
        tuple(f"{count} {reason}" for reason, count in after.rejected.items()),
        after.usable,
        _verdict(after),
    )


def whereabouts() -> str:
    """Where servers have their pages, as people start them."""
    usual = [f"{one.title} :{one.port}" for one in SERVERS if one.series and one.port and one.path == "/metrics"]
    others = [f"{one.title} :{one.port}{one.path}" for one in SERVERS if one.port and one.path != "/metrics"]
    return f"{', '.join(usual)} under /metrics; {', '.join(others)}"


def _told(quantity: Quantity, found: Found, after: Reading, did: Interval, interval_s: float) -> Told:
    kind, value, now = found.series.kind, None, "unknown until the next scrape"
    if kind is Kind.GAUGE:
        value = after.gauges[quantity]
        now = f"{value:.0%}" if quantity in _SHARES else f"{value:.0f}"
    elif quantity in did.samples:
        now = "nothing ended"
        if count := sum(number for _, number in did.samples[quantity]):
            value = did.seconds[quantity] / count
            now = f"{count} in {interval_s:.1f} s, mean {value:.3g} s{_worst(found, did.samples[quantity])}"
    elif quantity in did.grown:
        value = did.grown[quantity] / interval_s
        now = f"{sum(after.totals[quantity].values()):.0f}, {value:.3g} a second"
    return Told(
        quantity,
        found.series.name,
        found.type_told or found.series.kind.value,
        _unit(quantity, kind),
        now,
        value,
        found.mismatch(quantity),
    )


def _worst(found: Found, samples: Samples) -> str:
    if found.series.kind is not Kind.HISTOGRAM or len(samples) < 2:
        return ""
    rest = 0.99 * sum(count for _, count in samples)
    for bound_s, count in samples:
        rest -= count
        if rest <= 0:
            return f", 99 % within {bound_s:.3g} s"
    return ""


def _unit(quantity: Quantity, kind: Kind) -> str:
    if kind in (Kind.HISTOGRAM, Kind.SUM):
        return "seconds"
    if quantity in _SHARES:
        return "ratio"
    return "tokens" if quantity in _TOKENS else "steps" if quantity is Q.STEPS else "requests"


def _lack(quantity: Quantity, server: Server) -> Lack:
    names = tuple(series.name for series in server.series.get(quantity, ()))
    remedy = server.switch_on.get(quantity, "")
    if names and not remedy and server.lazy:
        remedy = "it may begin with the first request: send one and look again"
    return Lack(quantity, names, COST[quantity], remedy)


def _verdict(reading: Reading) -> str:
    if not reading.usable:
        return (
            "not usable for autoscaling: it tells neither what is inside nor how long it takes, or not what is done"
            f"{f'; {remedy}' if (remedy := reading.server.switch_on.get(None)) else ''}"
        )
    if reading.server.front:
        return "usable as the gateway of a service: it stands before replicas and tells of all of them, so scrape those too"
    if {Q.TTFT, Q.E2E}.isdisjoint(reading.found):
        return "usable, by load alone: no latency is told, so that a promise cannot be watched"
    if not {Q.WAITING, Q.RUNNING} & reading.found.keys():
        return "usable, by what requests take: nothing says how many are inside now, so a burst is noticed when its requests end"
    return "usable for autoscaling"
