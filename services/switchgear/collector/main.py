"""Composes the collector."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.collector import store
from switchgear.collector.config import CollectorConfig
from switchgear.collector.detectors import Detection, Moment, silence_signal
from switchgear.collector.event_writer import EventWriter
from switchgear.collector.expected import ExpectedNodes
from switchgear.collector.export.exporters import Exporters
from switchgear.collector.followers import Followers
from switchgear.collector.health_service import HealthApi
from switchgear.collector.imports.main import Imports
from switchgear.collector.ingest import Ingest
from switchgear.collector.memory import WindowMetrics
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.model import Event, Signal
from switchgear.collector.queries import Queries
from switchgear.collector.recording.record import record_of
from switchgear.collector.service import SignalApi, TelemetryApi
from switchgear.collector.siblings import Siblings
from switchgear.collector.taps import Taps
from switchgear.collector.verdicts import Verdicts
from switchgear.collector.windows import Windows
from switchgear.core.clock import Clock
from switchgear.core.service import Endpoints, Service
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.v1.signal_service_pb2_grpc import add_SignalServiceServicer_to_server
from switchgear.v1alpha.health_service_pb2_grpc import add_HealthServiceServicer_to_server
from switchgear.v1alpha.telemetry_service_pb2_grpc import add_TelemetryServiceServicer_to_server

log = logging.getLogger(__name__)

_SERVICES = ("switchgear.v1alpha.TelemetryService", "switchgear.v1.SignalService", "switchgear.v1alpha.HealthService")
_TICK_S = 0.5
_PRUNE_S = 60.0
_SILENCES_AT_ONCE = 500
#: Within this time after a collector was added the others are to be started with the new list.
MOVE_S_MAX = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings:
    """silence_s: how long an agent may be gone before its node counts as silent.

    events_max, signals_max: rows that are kept; the oldest go first.
    """

    silence_s: float = 10.0
    events_max: int = 100_000
    signals_max: int = 100_000


class CollectorService:
    """See `core.service.Service`."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: CollectorSettings,
        registry: CollectorRegistry,
        config: CollectorConfig,
    ) -> None:
        self._database, self._clock, self._settings, self._config = database, clock, settings, config
        self._feed = ChangeFeed(database, store.SERVICE)
        self._metrics = CollectorMetrics(registry)
        self._detection = Detection(settings.silence_s)
        self._record = record_of(config.recording, clock, registry, settings.silence_s)
        self._verdicts = Verdicts(database, clock, self._own, self._record.cleared)
        self._followers = Followers(config.webhook, database, self._verdicts.feed, clock, registry, own=self._own)
        self._siblings = Siblings(config.sharding)
        self._streaming = set[str]()
        self._expected = ExpectedNodes(self._expect)
        #: Recent samples of all nodes.
        self.windows = Windows(bytes_max=config.windows.bytes_max())
        WindowMetrics(registry, self.windows)
        self._writer = EventWriter(self._commit, store.refused, self._metrics.events_refused.inc)
        self._exporters = Exporters(config.remote_write, config.otlp_export, clock, registry)
        taps = (*self._exporters.taps, *self._record.taps)
        self._ingest = Ingest(
            self.windows,
            self._writer,
            clock,
            self._metrics,
            connected=self._connected,
            disconnected=self._disconnected,
            taps=taps,
            settings=config.ingest,
            sharding=config.sharding,
        )
        self._imports = Imports(
            otlp_import=config.otlp_import,
            scrapes=config.scrape,
            agents=self,
            windows=self.windows,
            taps=Taps(taps),
            database=database,
            writer=self._writer,
            clock=clock,
            registry=registry,
            silence_s=settings.silence_s,
            elsewhere=config.sharding.elsewhere,
        )
        self.service_names: Sequence[str] = (*_SERVICES, *self._imports.service_names)

    def register(self, server: grpc.aio.Server) -> None:
        queries = Queries(self.windows, self._clock)
        telemetry = TelemetryApi(self._ingest, self.windows, queries, self._siblings)
        add_TelemetryServiceServicer_to_server(telemetry, server)
        add_SignalServiceServicer_to_server(SignalApi(self._database, self._feed), server)
        add_HealthServiceServicer_to_server(HealthApi(self._database, self._verdicts, self._clock), server)
        self._imports.register(server)

    async def run(self, endpoints: Endpoints) -> None:
        self._siblings.tls = endpoints.tls
        async with self._database.read() as session:
            expected = await store.expected_nodes(session)
        self._expected.stored(node for node in expected if not self._config.sharding.elsewhere(node))
        self._ingest.expect(len(self._expected.nodes - self._streaming))
        # Of several collectors one that has just been added waits for agents that the others still have.
        grace_s = MOVE_S_MAX if self._config.sharding.collectors else 0.0
        for node in self._expected.nodes - self._streaming:
            self._gone(node, self._clock.monotonic_s() + grace_s)
            self._metrics.agent(node, connected=False)
        async with self._siblings, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._record.run())
            tasks.create_task(self._writer.run())
            tasks.create_task(self._exporters.run())
            tasks.create_task(self._expected.run())
            tasks.create_task(self._verdicts.run())
            tasks.create_task(self._followers.run())
            tasks.create_task(self._ingest.run())
            tasks.create_task(self._imports.run())
            tasks.create_task(self._tell_silence())
            tasks.create_task(self._prune())

    async def _commit(self, events: Sequence[Event]) -> None:
        # Whoever has an event stored is missed when it falls silent, also by a collector that starts meanwhile.
        await self._expected.save_new()
        await self._verdicts.save_heard()
        found = [(event, self._detection.told(event)) for event in events]
        self._record.told(found)
        await self._record.written()
        async with self._database.write() as session:
            stored, raised = await store.add_events(session, found)
            new = {signal.signal_id for signal in raised}
            await self._verdicts.raised(
                session, [(event, one) for event, signals in found for one in signals if one.signal_id in new]
            )
        self._metrics.events.inc(stored)
        self._metrics.event_duplicates.inc(len(events) - stored)
        self._metrics.raised(raised)
        if raised:
            self._feed.changed()
            self._verdicts.changed()

    async def _expect(self, nodes: Sequence[str]) -> None:
        async with self._database.write() as session:
            await store.expect_nodes(session, nodes)

    def _own(self, node: str) -> bool:
        return not self._config.sharding.elsewhere(node)

    def _connected(self, node: str, boot_id: str, epoch: str) -> None:
        self._verdicts.heard(node, boot_id, epoch)
        self._streaming.add(node)
        self._metrics.agent(node, connected=True)
        self._metrics.streams.set(len(self._streaming))
        self._detection.heard(node)
        self._record.connected(node, boot_id, epoch)
        self._expected.add(node)

    def _disconnected(self, node: str) -> None:
        self._streaming.discard(node)
        self._metrics.agent(node, connected=False)
        self._metrics.streams.set(len(self._streaming))
        self._gone(node, self._clock.monotonic_s())

    def _gone(self, node: str, since_s: float) -> None:
        self._detection.gone(node, since_s)
        self._record.gone(node, since_s)

    def streams(self, node: str) -> bool:
        """See `imports.judging.Agents`."""
        return node in self._streaming

    async def tell_silence(self, node: str, silent_s: float, missing: str) -> None:
        """See `imports.judging.Agents`."""
        signal = silence_signal(node, silent_s, self._clock.unix_ns(), missing)
        async with self._database.write() as session:
            await store.add_signals(session, [signal])
            await self._verdicts.silent(session, [signal])
        self._record.raised(signal, found_elsewhere=True)
        self._metrics.raised([signal])
        self._feed.changed()
        self._verdicts.changed()

    def heard(self, node: str) -> None:
        """See `imports.judging.Agents`."""
        self._verdicts.heard(node)
        self._record.heard(node)

    async def _tell_silence(self) -> None:
        while True:
            now = Moment(self._clock.unix_ns(), self._clock.monotonic_s())
            found = self._detection.silent(now)
            self._record.looked(now)
            if found:
                await self._record.written()
            # A switch that fails silences many at once.
            for begin in range(0, len(found), _SILENCES_AT_ONCE):
                if not await self._store_silences(found[begin : begin + _SILENCES_AT_ONCE], now):
                    break
            await asyncio.sleep(_TICK_S)

    async def _store_silences(self, signals: Sequence[Signal], found: Moment) -> bool:
        """Whether they are stored; if not, they are due again."""
        # Before the write: an agent that comes back meanwhile is expected anew.
        for signal in signals:
            self._expected.discard(signal.node)
        try:
            async with self._database.write() as session:
                await self._verdicts.silent(session, await store.add_silences(session, signals))
        except Exception:
            for signal in signals:
                self._expected.add(signal.node)
            log.exception("cannot store that %d nodes are silent; trying again", len(signals))
            return False
        for signal in signals:
            self._detection.told_silent(signal.node, found)
            self._record.raised(signal)
            if signal.node in self._streaming:  # it came back meanwhile, perhaps before its silence was stored
                self._verdicts.heard(signal.node)
        await self._record.written()
        self._metrics.raised(signals)
        self._feed.changed()
        self._verdicts.changed()
        return True

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_S)
            try:
                async with self._database.write() as session:
                    await store.prune(
                        session, events_max=self._settings.events_max, signals_max=self._settings.signals_max
                    )
            except Exception:
                log.exception("cannot prune; trying again")


def build(
    database: Database,
    clock: Clock,
    settings: CollectorSettings | None = None,
    registry: CollectorRegistry | None = None,
    config: CollectorConfig | None = None,
) -> Service:
    """The collector. registry: where its metrics go; a private one when left out."""
    return CollectorService(
        database,
        clock,
        settings or CollectorSettings(),
        registry or CollectorRegistry(),
        config or CollectorConfig(),
    )
