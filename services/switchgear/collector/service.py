"""The collector's gRPC edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.collector import store
from switchgear.collector.ingest import Ingest
from switchgear.collector.model import Severity, Signal
from switchgear.collector.queries import Queries
from switchgear.collector.siblings import Siblings
from switchgear.collector.windows import NOT_REPORTED, Windows
from switchgear.core import names
from switchgear.core.errors import NotFound
from switchgear.store import paging
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.store.revisions import current_revision
from switchgear.v1 import signal_service_pb2
from switchgear.v1.signal_service_pb2_grpc import SignalServiceServicer
from switchgear.v1alpha import telemetry_service_pb2
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceServicer

_SEVERITIES = {
    Severity.INFO: signal_service_pb2.Signal.INFO,
    Severity.WARNING: signal_service_pb2.Signal.WARNING,
    Severity.FATAL: signal_service_pb2.Signal.FATAL,
}
#: Counts come from agents, who may say anything.
_INT64_MAX = 2**63 - 1
Context = grpc.aio.ServicerContext[Any, Any]


class TelemetryApi(TelemetryServiceServicer):
    def __init__(self, ingest: Ingest, windows: Windows, queries: Queries, siblings: Siblings) -> None:
        self._ingest = ingest
        self._windows = windows
        self._queries = queries
        self._siblings = siblings

    async def Stream(
        self, request_iterator: AsyncIterator[telemetry_service_pb2.AgentMessage], context: Context
    ) -> AsyncIterator[telemetry_service_pb2.CollectorMessage]:
        async for message in self._ingest.stream(context):
            yield message

    async def GetNodeTelemetry(
        self, request: telemetry_service_pb2.GetNodeTelemetryRequest, context: Context
    ) -> telemetry_service_pb2.NodeTelemetry:
        (node,) = names.parse(request.name, "nodes/*/telemetry")
        told = await self._siblings.node_telemetry(request, names.node_name(node))
        if told is not None:
            return told
        window = self._windows.get(names.node_name(node))
        if window is None:
            raise NotFound(request.name, f"no agent of nodes/{node} has streamed to this collector; start one there")
        values = window.latest()
        return telemetry_service_pb2.NodeTelemetry(
            name=request.name,
            time=_timestamp(window.time_unix_ns),
            blocks_lost=min(window.blocks_lost, _INT64_MAX),
            associations=window.associations,
            values=[
                telemetry_service_pb2.SeriesValue(
                    metric=key.metric,
                    unit=key.unit,
                    labels=dict(key.labels),
                    value=None if unknown else value,
                    unknown_reason=window.reasons.get(series_id, NOT_REPORTED) if unknown else "",
                )
                for series_id, (key, value, unknown) in enumerate(
                    zip(window.series, values.tolist(), np.isnan(values).tolist(), strict=True)
                )
            ],
        )

    async def Query(
        self, request: telemetry_service_pb2.QueryRequest, context: Context
    ) -> telemetry_service_pb2.QueryResponse:
        pinned = self._queries.pinned(request)
        return await self._siblings.query(pinned, await self._queries.answer(pinned))


class SignalApi(SignalServiceServicer):
    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed

    async def ListSignals(
        self, request: signal_service_pb2.ListSignalsRequest, context: Context
    ) -> signal_service_pb2.ListSignalsResponse:
        if request.node:
            names.parse(request.node, "nodes/*")
        collection = f"signals of {request.node}"
        size = paging.page_size(request.page_size)
        before = paging.after_number(collection, request.page_token)
        async with self._database.read() as session:
            revision = await current_revision(session, store.SERVICE)
            found = await store.signals_before(session, request.node, before, size + 1)
        signals = [_to_proto(signal) for _, signal in found]
        count = paging.fitting(signals[:size])
        return signal_service_pb2.ListSignalsResponse(
            signals=signals[:count],
            next_page_token=paging.page_token(collection, found[count - 1][0]) if len(found) > count else "",
            revision=revision,
        )

    async def WatchSignals(
        self, request: signal_service_pb2.WatchSignalsRequest, context: Context
    ) -> AsyncIterator[signal_service_pb2.WatchSignalsResponse]:
        async for revision, signal in self._feed.watch(request.revision, store.signals_after):
            yield signal_service_pb2.WatchSignalsResponse(
                signal=_to_proto(signal) if signal else None, revision=revision
            )


def _to_proto(signal: Signal) -> signal_service_pb2.Signal:
    return signal_service_pb2.Signal(
        name=names.signal_name(signal.signal_id),
        node=signal.node,
        gpu=names.gpu_name(signal.node, signal.gpu) if signal.gpu is not None else "",
        kind=signal.kind,
        severity=_SEVERITIES[signal.severity],
        action=signal.action,
        evidence=signal.evidence,
        time=_timestamp(signal.time_unix_ns),
        simulated=signal.simulated,
    )


def _timestamp(unix_ns: int) -> Timestamp:
    return Timestamp(seconds=unix_ns // 1_000_000_000, nanos=unix_ns % 1_000_000_000)
