"""One page of an inference server, to what it says of the quantities that a policy goes by. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from switchgear.autoscaler.adapters.model import Combine, Kind, Quantity, Series, Server
from switchgear.autoscaler.adapters.page import Labels, Page, ServerUnknown, take
from switchgear.autoscaler.adapters.table import BY_NAME, SERVERS
from switchgear.core.errors import Invalid, Reason

#: A process that has it began at its value; another value is another process, whose counters begin at zero.
_START = "process_start_time_seconds"
_LOAD = frozenset({Quantity.WAITING, Quantity.RUNNING, Quantity.E2E})
_WORK = frozenset({Quantity.ARRIVED, Quantity.COMPLETED, Quantity.GENERATED_TOKENS})
#: Without one of each kind nobody can size a service: what is inside or how long it takes, and what is done.
SIZING = _LOAD | _WORK
#: Above it a double counts no more one by one. -1 as an unsigned number of 64 bits, which a gauge that fell below zero shows, is 1.8e19.
_FIGURE_MAX = 2.0**53
_UNIT_NAMES = {1e-6: ("microseconds", "us"), 1e-3: ("milliseconds", "ms"), 1.0: ("seconds", "s")}
_TIMES = frozenset({Quantity.TTFT, Quantity.TPOT, Quantity.E2E, Quantity.QUEUE_TIME})
_EXPECTED = {
    Kind.GAUGE: {"gauge"},
    Kind.COUNTER: {"counter", "histogram", "summary"},
    Kind.SUM: {"counter"},
    Kind.HISTOGRAM: {"histogram", "summary"},
}


@dataclass(frozen=True, slots=True)
class Histogram:
    """bounds_s: upper bounds in base units, rising, the last one infinite. counts: cumulative. Both empty: of a summary."""

    bounds_s: tuple[float, ...]
    counts: tuple[float, ...]
    sum_s: float
    count: float


@dataclass(frozen=True, slots=True)
class Found:
    """type_told, unit_told: by the page; empty: it does not say. parts: series that made the figure."""

    series: Series
    type_told: str
    unit_told: str
    parts: int

    def mismatch(self, quantity: Quantity) -> str:
        """How the page contradicts the table, as a sentence; empty when it does not."""
        said, unit = self.type_told, self.unit_told
        if said and said not in _EXPECTED[self.series.kind] | {"unknown", "untyped", "info"}:
            return f"{self.series.name} is a {said} on this page, a {self.series.kind} in the table; it is read as the latter"
        if quantity in _TIMES and unit and unit not in _UNIT_NAMES[self.series.unit]:
            return f"{self.series.name} is in {unit} on this page, in {_UNIT_NAMES[self.series.unit][0]} in the table"
        return ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one page says; all in base units.

    gauges: one figure of the server. totals: of counters by the series' labels, since they may come and go one by one.
    histograms: the same. found: under what name. rejected: lines that were not taken, by reason. start_unix_s: when the process began.
    stamp_s: the newest time that the page gives its samples. None: not told. names: of all samples that the table knows.
    """

    server: Server
    version: str = ""
    gauges: Mapping[Quantity, float] = field(default_factory=dict)
    totals: Mapping[Quantity, Mapping[str, float]] = field(default_factory=dict)
    histograms: Mapping[Quantity, Mapping[str, Histogram]] = field(default_factory=dict)
    found: Mapping[Quantity, Found] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    start_unix_s: float | None = None
    stamp_s: float | None = None
    names: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether the page has a series of that name, used or not."""
        return name in self.names or f"{name}_count" in self.names

    @property
    def missing(self) -> tuple[Quantity, ...]:
        """What this kind of server can tell, and this page does not."""
        return tuple(quantity for quantity in self.server.series if quantity not in self.found)

    @property
    def usable(self) -> bool:
        """Whether a policy can size a service by it: by what is inside, or how long it takes, and by what is done."""
        return bool(_LOAD & self.found.keys() and _WORK & self.found.keys())


def read(text: str, engine: str = "") -> Reading:
    """What the page says.

    engine: name of a `Server`, for a page that may be empty as yet; empty: the one whose series the page has most of.
    Raises PageUnusable for what is no page of metrics, ServerUnknown for one of something else, Invalid for an engine that does not exist.
    """
    if engine and engine not in BY_NAME:
        known = ", ".join(sorted(BY_NAME))
        raise Invalid(f"{engine!r} is no inference server that is known; known are {known}", Reason.BAD_FIELD)
    page = take(text, names_of(engine))
    server = BY_NAME[engine] if engine else _recognized(page)
    if server is None:
        raise ServerUnknown(
            "it has no series of an inference server that is known; --engine names the kind of one that has served nothing yet"
        )
    return _reading(page, server)


def _reading(page: Page, server: Server) -> Reading:
    gauges: dict[Quantity, float] = {}
    totals: dict[Quantity, Mapping[str, float]] = {}
    histograms: dict[Quantity, Mapping[str, Histogram]] = {}
    found: dict[Quantity, Found] = {}
    for quantity, choices in server.series.items():
        for series in choices:
            parts = 0
            if series.kind is Kind.HISTOGRAM:
                if one := _histograms(page, series, server.ranks):
                    histograms[quantity], parts = one, len(one)
            elif chosen := _finite(page, _chosen(page, series)):
                if series.kind is Kind.GAUGE:
                    parts = len(chosen)
                    gauges[quantity] = _combined(chosen, series, server.ranks)
                else:
                    totals[quantity] = _by_labels(chosen, series, server.ranks)
                    parts = len(totals[quantity])
            if parts:
                found[quantity] = Found(
                    series, page.told(page.types, series.name), page.told(page.units, series.name), parts
                )
                break
    for quantity, how in found.items():
        if how.series.less in gauges:
            gauges[quantity] = max(0.0, gauges[quantity] - gauges[how.series.less])
    # Of several processes on one page (or none that tells) the counters themselves say who began anew.
    start = _finite(page, page.samples.get(_START, []))
    return Reading(
        server,
        _version(page, server),
        gauges,
        totals,
        histograms,
        found,
        dict(page.rejected),
        start[0][1] if len(start) == 1 else None,
        page.stamp_s,
        frozenset(page.samples),
    )


def _chosen(page: Page, series: Series) -> list[tuple[Labels, float]]:
    samples = page.samples.get(series.name, [])
    if series.where is not None:
        label, values = series.where
        samples = [one for one in samples if one[0].get(label, "").startswith(values)]
    if series.without is not None:
        label, values = series.without
        samples = [one for one in samples if not one[0].get(label, "").startswith(values)]
    if series.product:
        return [(labels, product) for labels, _ in samples if (product := _product(labels, series.product)) is not None]
    return samples


def _product(labels: Labels, names: Sequence[str]) -> float | None:
    try:
        return math.prod(float(labels[name]) for name in names)
    except (KeyError, ValueError):
        return None


def _finite(page: Page, samples: Iterable[tuple[Labels, float]]) -> list[tuple[Labels, float]]:
    """Those that are figures at all: NaN is unknown, and none of these quantities can be infinite, negative or as large as that."""
    taken = []
    for labels, value in samples:
        if 0 <= value < _FIGURE_MAX:
            taken.append((labels, value))
        else:
            page.rejected["no figure"] += 1
    return taken


def _key(labels: Labels, ranks: Sequence[str]) -> str:
    return ",".join(f"{name}={labels[name]}" for name in sorted(labels) if name not in ranks and name != "le")


def _by_labels(samples: Iterable[tuple[Labels, float]], series: Series, ranks: Sequence[str]) -> dict[str, float]:
    """Each part once: of ranks that tell the same, the one that has got furthest."""
    parts: dict[str, float] = {}
    for labels, value in samples:
        key = _key(labels, ranks)
        parts[key] = max(value * series.unit, parts.get(key, 0.0))
    return parts


def _combined(samples: Sequence[tuple[Labels, float]], series: Series, ranks: Sequence[str]) -> float:
    parts = _by_labels(samples, series, ranks)
    total = sum(parts.values())
    return total / len(parts) if series.combine is Combine.MEAN else total


def _histograms(page: Page, series: Series, ranks: Sequence[str]) -> dict[str, Histogram]:
    sums = _by_labels(_finite(page, page.samples.get(f"{series.name}_sum", [])), series, ranks)
    plain = Series(series.name, Kind.COUNTER)
    counts = _by_labels(_finite(page, page.samples.get(f"{series.name}_count", [])), plain, ranks)
    # Triton's manual shows buckets without their suffix.
    rows = [*page.samples.get(f"{series.name}_bucket", []), *page.samples.get(series.name, [])]
    buckets: dict[str, dict[float, float]] = {}
    for labels, value in _finite(page, (row for row in rows if "le" in row[0])):
        try:
            bound = float(labels["le"]) * series.unit
        except ValueError:
            bound = math.nan
        if math.isnan(bound):
            page.rejected["malformed"] += 1
            continue
        one = buckets.setdefault(_key(labels, ranks), {})
        one[bound] = max(value, one.get(bound, 0.0))
    made = {}
    for key in sums.keys() & counts.keys():
        ordered = sorted(buckets.get(key, {}).items())
        if any(low > high for (_, low), (_, high) in pairwise(ordered)) or (ordered and ordered[-1][0] != math.inf):
            page.rejected["histogram"] += 1
            ordered = []  # its mean is all that can be believed
        bounds = tuple(bound for bound, _ in ordered)
        made[key] = Histogram(bounds, tuple(count for _, count in ordered), sums[key], counts[key])
    return made


def _recognized(page: Page) -> Server | None:
    """The server of whose quantities the page has most; the earlier one of the table among equals."""
    best, most = None, 0
    for server in SERVERS:
        if server.mark is not None:
            name, label, value = server.mark
            if any(labels.get(label) == value for labels, _ in page.samples.get(name, [])):
                return server
            continue
        count = sum(any(_present(page, one) for one in choices) for choices in server.series.values())
        if count > most:
            best, most = server, count
    return best


def _present(page: Page, series: Series) -> bool:
    if series.kind is Kind.HISTOGRAM:
        return f"{series.name}_count" in page.samples
    return bool(_chosen(page, series))


def _version(page: Page, server: Server) -> str:
    """What the page says of the version: itself, or what its names tell."""
    if server.version is not None:
        name, label = server.version
        return next((labels[label] for labels, _ in page.samples.get(name, []) if label in labels), "")
    names = [one for choices in server.series.values() for one in choices if _present(page, one)]
    since = max((one.since for one in names), key=_number, default="")
    until = min((one.until for one in names if one.until), key=_number, default="")
    parts = [f"{since} or newer" if since else "", f"{until} or older" if until else ""]
    return " and ".join(part for part in parts if part)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@cache
def names_of(engine: str) -> frozenset[str]:
    """Samples that tell anything about the server; "": about any."""
    servers = (BY_NAME[engine],) if engine else SERVERS
    names = {_START}
    for server in servers:
        names |= {pair[0] for pair in (server.mark, server.version) if pair is not None}
        for series in (one for choices in server.series.values() for one in choices):
            names.add(series.name)
            if series.kind is Kind.HISTOGRAM:
                names |= {f"{series.name}{end}" for end in ("_bucket", "_sum", "_count")}
    return frozenset(names)
