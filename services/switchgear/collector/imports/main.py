"""All imports of a collector."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence

import grpc.aio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import add_MetricsServiceServicer_to_server
from prometheus_client import CollectorRegistry

from switchgear.collector.event_writer import EventWriter
from switchgear.collector.imports import otlp
from switchgear.collector.imports.feeds import Feeds
from switchgear.collector.imports.fetch import Fetcher, tls_of
from switchgear.collector.imports.intake import Intake
from switchgear.collector.imports.judging import Agents, Judging
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.collector.imports.scrape import Scraping
from switchgear.collector.imports.settings import OtlpImport, Scrape
from switchgear.collector.imports.store import Origin
from switchgear.collector.imports.targets import Target, Targets
from switchgear.collector.taps import Taps
from switchgear.collector.windows import Windows
from switchgear.core.clock import Clock
from switchgear.store.database import Database

#: How often a file of targets is looked at.
_TARGETS_S = 5.0


class Imports:
    """What comes in beside agents. With nothing configured it costs nothing.

    elsewhere: see `Intake`. Raises Invalid when a file that `scrapes` name cannot be used.
    """

    def __init__(
        self,
        *,
        otlp_import: OtlpImport,
        scrapes: Sequence[Scrape],
        agents: Agents,
        windows: Windows,
        taps: Taps,
        database: Database,
        writer: EventWriter,
        clock: Clock,
        registry: CollectorRegistry,
        silence_s: float,
        elsewhere: Callable[[str], str],
    ) -> None:
        self._scrapes = scrapes
        self._tls = [tls_of(scrape) for scrape in scrapes]
        metrics = ImportMetrics(registry, [scrape.name for scrape in scrapes])
        self._feeds = Feeds(windows, taps, metrics, clock)
        self._judging = Judging(agents, database, writer, clock, metrics, silence_s=silence_s)
        self._intake = Intake(self._feeds, self._judging, clock, metrics, elsewhere)
        self._otlp = otlp.Otlp(otlp_import, self._intake) if otlp_import.enabled else None

    @property
    def service_names(self) -> Sequence[str]:
        """Of the gRPC services that `register` adds."""
        return (otlp.SERVICE,) if self._otlp else ()

    def register(self, server: grpc.aio.Server) -> None:
        if self._otlp:
            add_MetricsServiceServicer_to_server(otlp.MetricsApi(self._otlp), server)  # type: ignore[no-untyped-call]

    async def run(self) -> None:
        """Until cancelled."""
        if not (self._otlp or self._scrapes):
            return
        await self._judging.load()
        self._judging.expect(self._is_expected)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feeds.run())
            tasks.create_task(self._judging.run())
            if self._otlp:
                tasks.create_task(self._otlp.run())
            for scrape, tls in zip(self._scrapes, self._tls, strict=True):
                tasks.create_task(self._scrape(scrape, tls))

    def _is_expected(self, origin: Origin) -> bool:
        """Nodes that have a target of their own are expected with it."""
        node, source = origin
        if self._intake.elsewhere(node):
            return False
        if source == otlp.SOURCE:
            return self._otlp is not None
        return any(scrape.node_label and source == f"scrape/{scrape.name}" for scrape in self._scrapes)

    async def _scrape(self, scrape: Scrape, tls: ssl.SSLContext | bool) -> None:
        fetcher, targets = Fetcher(scrape, tls), Targets(scrape)
        running = dict[Target, asyncio.Task[None]]()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    # A file of thousands takes as many milliseconds as streams would wait.
                    found = await asyncio.to_thread(targets.look)
                    # A page whose series name their nodes has some for each collector.
                    wanted = {target for target in found if not (target.node and self._intake.elsewhere(target.node))}
                    for target in running.keys() - wanted:
                        running.pop(target).cancel()
                    for target in wanted - running.keys():
                        running[target] = tasks.create_task(Scraping(scrape, target, fetcher, self._intake).run())
                    await asyncio.sleep(_TARGETS_S)
        finally:
            await fetcher.close()
