"""OTLP's metrics service: nodes with an OpenTelemetry collector or SDK of their own tell us what they know."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceServicer

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.imports.feed import Feed
from switchgear.collector.imports.intake import Intake
from switchgear.collector.imports.points import Keys, Points, read
from switchgear.collector.imports.rules import RULES
from switchgear.collector.imports.settings import OtlpImport
from switchgear.collector.ring import Times
from switchgear.collector.series import SeriesKey
from switchgear.core import identity
from switchgear.core.identity import Kind

SOURCE = "otlp"
SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
#: As Prometheus: a series of which nothing came for so long is unknown; or for three intervals, when that is longer.
STALE_S = 300.0
#: How far off a sample's time may be. Older ones come of a sender's queue and are of no use to a detector.
FUTURE_NS, PAST_NS = 600 * 1_000_000_000, 3600 * 1_000_000_000
#: The interval of a node's exports, as far as it is believed, and before it is known.
INTERVAL_S_MIN, INTERVAL_S_MAX, INTERVAL_S = 5.0, 600.0, 60.0
#: A node of which nothing came for so long is forgotten.
GONE_S = 3600.0
#: Points so close in time are of one look at the node: its readers each have a time of their own.
_GROUP_NS = 500_000_000
#: A larger request is read in a thread, so that streams do not wait for it.
_LARGE_BYTES = 64 * 1024
_SWEEP_S = 15.0


@dataclass(slots=True)
class _Sender:
    heard_s: float
    interval_s: float = INTERVAL_S


class Otlp:
    """Takes requests in. Bounded by `nodes_max` nodes, and by their windows."""

    def __init__(self, settings: OtlpImport, intake: Intake) -> None:
        self._settings = settings
        self._feeds, self._judging, self._clock = intake.feeds, intake.judging, intake.clock
        self._metrics, self._elsewhere = intake.metrics, intake.elsewhere
        self._senders: dict[str, _Sender] = {}
        self._keys = Keys()

    async def take(self, request: ExportMetricsServiceRequest) -> Counter[str]:
        """Returns how many points were rejected, by reason.

        Raises PermissionDenied when a node's certificate is not that of a node in the request.
        """
        await self._judging.ready()
        if request.ByteSize() > _LARGE_BYTES:
            nodes, rejected = await asyncio.to_thread(read, request, self._settings, self._keys)
        else:
            nodes, rejected = read(request, self._settings, self._keys)
        for node in list(nodes):
            if self._elsewhere(node):
                rejected["elsewhere"] += len(nodes.pop(node).keys)
            elif identity.current().kind is not Kind.USER:  # an operator may speak for all nodes
                identity.require_node(node)
        for reason, count in rejected.items():
            self._metrics.rejected.labels(reason).inc(count)
        for node, points in nodes.items():
            rejected.update(await self._take(node, points))
            # A sender for many nodes has milliseconds of them in a request: streams come between.
            await asyncio.sleep(0)
        return rejected

    async def _take(self, node: str, points: Points) -> Counter[str]:
        rejected = Counter[str]()
        feed = self._feed(node)
        if feed is None:
            rejected["nodes"] = len(points.keys)
            self._metrics.rejected.labels("nodes").inc(len(points.keys))
            return rejected
        now = self._clock.unix_ns()
        ids = feed.ids(points.keys, now)
        rejected["series"] = int((ids < 0).sum())  # the feed has counted them
        times = np.clip(np.array(points.times, np.uint64), 0, np.iinfo(np.int64).max).astype(np.int64)
        times[times == 0] = now
        in_time = (times <= now + FUTURE_NS) & (times >= now - PAST_NS)
        judged = np.array([key.metric in RULES for key in points.keys], bool)
        values, deltas = np.array(points.values, np.float64), np.array(points.deltas, bool)
        late = 0
        looks = list[tuple[list[tuple[SeriesKey, float]], int]]()
        for group in _groups(times, np.flatnonzero(in_time & (ids >= 0))):
            fresh = group[times[group] > feed.times[ids[group]]]
            late += len(group) - len(fresh)
            if not len(fresh):
                continue
            added = fresh[deltas[fresh]]
            if len(added):
                values[added] = _totals(feed, ids[added], values[added])
            time_unix_ns = int(times[fresh[-1]])
            feed.put(time_unix_ns, ids[fresh], values[fresh], now)
            self._metrics.samples.labels(SOURCE).inc(len(fresh))
            places = fresh[judged[fresh]].tolist()
            looks.append(([(points.keys[place], float(values[place])) for place in places], time_unix_ns))
        good_s = 3 * self._senders[node].interval_s
        for samples, time_unix_ns in looks:  # ids hold no longer: this waits
            await self._judging.look(node, SOURCE, samples, time_unix_ns, good_s)
        for reason, count in (("time", int((~in_time).sum())), ("out_of_order", late)):
            rejected[reason] = count
            self._metrics.rejected.labels(reason).inc(count)
        return rejected

    def _feed(self, node: str) -> Feed | None:
        now_s = self._clock.monotonic_s()
        sender = self._senders.get(node)
        if sender is None and len(self._senders) >= self._settings.nodes_max:
            return None
        if sender is None:
            self._senders[node] = _Sender(now_s)
        else:
            # One look at a node may come in several requests: a short interval is believed slowly.
            seen_s = max(now_s - sender.heard_s, 0.9 * sender.interval_s, INTERVAL_S_MIN)
            sender.heard_s, sender.interval_s = now_s, min(seen_s, INTERVAL_S_MAX)
        return self._feeds.of(node, SOURCE)

    async def run(self) -> None:
        """Lets what no longer comes become unknown, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        now, now_s = self._clock.unix_ns(), self._clock.monotonic_s()
        for node, sender in list(self._senders.items()):
            if now_s - sender.heard_s > GONE_S:
                del self._senders[node]
            elif (feed := self._feeds.of(node, SOURCE)) is not None:
                feed.forget_before(now - round(max(STALE_S, 3 * sender.interval_s) * 1e9), now)


class MetricsApi(MetricsServiceServicer):
    """The gRPC edge."""

    def __init__(self, otlp: Otlp) -> None:
        self._otlp = otlp

    async def Export(  # noqa: N802 - the contract's name
        self,
        request: ExportMetricsServiceRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - the same
    ) -> ExportMetricsServiceResponse:
        rejected = +(await self._otlp.take(request))
        if not rejected:
            return ExportMetricsServiceResponse()
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        return ExportMetricsServiceResponse(
            partial_success=ExportMetricsPartialSuccess(
                rejected_data_points=rejected.total(),
                error_message=f"points rejected, by reason: {reasons}; see the section Import of docs/collector.md",
            )
        )


def _groups(times: Times, places: Ids) -> Iterator[Ids]:
    """Places whose times are about the same, oldest first."""
    if not len(places):
        return
    order = places[np.argsort(times[places], kind="stable")]
    begin = 0
    while begin < len(order):
        end = int(np.searchsorted(times[order], times[order[begin]] + _GROUP_NS, side="right"))
        yield order[begin:end]
        begin = end


def _totals(feed: Feed, ids: Ids, deltas: Values) -> Values:
    """What the deltas make of the sums so far; one that is unknown begins at 0. An id may come several times."""
    totals = np.where(np.isnan(feed.values), 0.0, feed.values)
    np.add.at(totals, ids, deltas)
    return totals[ids]
