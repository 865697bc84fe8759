"""Composes the exporters of a collector from its configuration."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from typing import Any

from prometheus_client.registry import CollectorRegistry

from switchgear.collector.export.delivery import Delivery
from switchgear.collector.export.feed import Feed, FeedSettings
from switchgear.collector.export.metrics import OTLP_EXPORT, REMOTE_WRITE, ExportMetrics
from switchgear.collector.export.otlp import Otlp
from switchgear.collector.export.prometheus import WriteV1
from switchgear.collector.export.rows import Encoder
from switchgear.collector.export.senders import GrpcSender, HttpSender, Sender
from switchgear.collector.export.settings import OtlpExport, RemoteWrite, Target
from switchgear.collector.export.write_v2 import WriteV2
from switchgear.collector.taps import Tap
from switchgear.core.clock import Clock

#: For what waits when the collector ends.
FLUSH_S = 5.0

_Kind = RemoteWrite | OtlpExport


class Exporters:
    """All targets. Those that want the same samples in the same form share the work of making requests."""

    def __init__(
        self,
        remote_writes: Sequence[RemoteWrite],
        otlp_exports: Sequence[OtlpExport],
        clock: Clock,
        registry: CollectorRegistry,
    ) -> None:
        """Raises Invalid for TLS files that cannot be used."""
        metrics = ExportMetrics(registry, REMOTE_WRITE), ExportMetrics(registry, OTLP_EXPORT)
        groups: dict[Hashable, tuple[Encoder, FeedSettings, list[Delivery]]] = {}
        targets: list[_Kind] = [*remote_writes, *otlp_exports]
        for target in targets:
            encoder, wanted = _encoder(target), _wanted(target)
            encoder, _, deliveries = groups.setdefault((_form(target), wanted), (encoder, wanted, []))
            of_kind = metrics[isinstance(target, OtlpExport)]
            deliveries.append(Delivery(target, encoder, _sender(target, encoder, clock), of_kind, clock))
        self._feeds = [Feed(wanted, clock, deliveries) for _, wanted, deliveries in groups.values()]
        self._deliveries = [delivery for _, _, deliveries in groups.values() for delivery in deliveries]

    @property
    def taps(self) -> Sequence[Tap]:
        """What must see each row that comes."""
        return self._feeds

    async def run(self) -> None:
        """Sends until cancelled; what is there by then still goes out, within FLUSH_S."""
        feeds = [asyncio.create_task(feed.run()) for feed in self._feeds]
        deliveries = [asyncio.create_task(delivery.run()) for delivery in self._deliveries]
        forever = asyncio.create_task(asyncio.Event().wait())
        try:
            # Not `gather`: it would cancel the deliveries with us.
            done, _ = await asyncio.wait([*feeds, *deliveries, forever], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:  # nothing of this ends by itself: a mistake of ours must not go unseen
                task.result()
        finally:
            await _cancelled([*feeds, forever])
            for feed in self._feeds:
                feed.seal(math.inf)
            try:
                async with asyncio.timeout(FLUSH_S):
                    for delivery in self._deliveries:
                        await delivery.drained()
            except TimeoutError:
                pass
            await _cancelled(deliveries)
            for delivery in self._deliveries:
                await delivery.close()


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _form(target: _Kind) -> Hashable:
    """What the bytes of a request depend on, beside the rows."""
    if isinstance(target, RemoteWrite):
        return target.protocol, tuple(sorted(target.external_labels.items()))
    return "otlp", tuple(sorted(target.resource_attributes.items()))


def _wanted(target: Target) -> FeedSettings:
    return FeedSettings(target.interval_s, target.keep, target.drop, target.samples_max, target.connections)


def _encoder(target: _Kind) -> Encoder:
    if isinstance(target, OtlpExport):
        return Otlp(target.resource_attributes)
    return WriteV1(target.external_labels) if target.protocol == "1.0" else WriteV2(target.external_labels)


def _sender(target: _Kind, encoder: Encoder, clock: Clock) -> Sender:
    if isinstance(target, RemoteWrite):
        return HttpSender(target, target.url, encoder.headers, clock, confirmed=target.protocol == "2.0")
    if target.protocol == "grpc":
        return GrpcSender(target)
    return HttpSender(target, target.url, encoder.headers, clock, gzipped=target.compression == "gzip", otlp=True)
