"""What follows the health of this collector's nodes within its process: metrics and webhooks."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from switchgear.collector import health_store
from switchgear.collector.health import NodeHealth, NodeVerdict
from switchgear.collector.webhooks import store
from switchgear.collector.webhooks.delivery import Delivery
from switchgear.collector.webhooks.metrics import WebhookMetrics
from switchgear.collector.webhooks.settings import Webhook
from switchgear.core.clock import Clock
from switchgear.core.errors import OutOfRange, Unavailable
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed

log = logging.getLogger(__name__)

#: Nodes in the metrics one by one; more than these at once are a fault of something that they share.
NODES_SHOWN_MAX = 1000
_RETRY_S = 1.0
_COUNTED = [verdict for verdict in NodeVerdict if verdict is not NodeVerdict.FORGOTTEN]


class HealthMetrics(Collector):
    """Registers itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._verdicts: dict[str, NodeVerdict] = {}
        registry.register(self)

    def see(self, health: NodeHealth) -> None:
        """The newest of a node."""
        if health.verdict is NodeVerdict.FORGOTTEN:
            self._verdicts.pop(health.node, None)
        else:
            self._verdicts[health.node] = health.verdict

    def collect(self) -> Iterator[Metric]:
        verdicts = self._verdicts.copy()
        counts = Counter(verdicts.values())
        nodes = GaugeMetricFamily("switchgear_node_verdicts", "Nodes by what is concluded of them", labels=["verdict"])
        for counted in _COUNTED:
            nodes.add_metric([counted.value], counts[counted])
        yield nodes
        ailing = GaugeMetricFamily(
            "switchgear_node_health",
            "1 for each node that is not healthy, with its verdict",
            labels=["node", "verdict"],
        )
        shown = ((node, verdict) for node, verdict in verdicts.items() if verdict is not NodeVerdict.HEALTHY)
        for (node, verdict), _ in zip(shown, range(NODES_SHOWN_MAX), strict=False):
            ailing.add_metric([node.partition("/")[2], verdict.value], 1)
        yield ailing


class Followers:
    """own: whether this collector takes in `nodes/{node}`: each collector tells of its own."""

    def __init__(
        self,
        webhooks: Sequence[Webhook],
        database: Database,
        feed: ChangeFeed,
        clock: Clock,
        registry: CollectorRegistry,
        *,
        own: Callable[[str], bool],
    ) -> None:
        """Raises Invalid for TLS files that cannot be used."""
        metrics = WebhookMetrics(registry)
        self._health = HealthMetrics(registry)
        self._deliveries = [Delivery(webhook, database, clock, metrics, own) for webhook in webhooks]
        self._labels = [webhook.label for webhook in webhooks]
        self._database, self._feed, self._own = database, feed, own

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            for delivery in self._deliveries:
                tasks.create_task(delivery.run())

    async def _follow(self) -> None:
        revision, restored = 0, False
        while True:
            try:
                if not restored:
                    await self._restore()
                    restored = True
                async for seen, health in self._feed.watch(revision, health_store.after_revision):
                    self._see(health)
                    revision = seen
            except OutOfRange:
                log.warning(
                    "the database is an older one than it was; following the health of nodes from its beginning"
                )
                revision = 0
            except Unavailable as error:
                log.debug("cannot follow the health of nodes: %s", error)  # the database tells it itself, once
            except Exception:
                log.exception("cannot follow the health of nodes; trying again")
            await asyncio.sleep(_RETRY_S)

    async def _restore(self) -> None:
        async with self._database.write() as session:
            await store.keep_only(session, self._labels, self._own)
        for delivery in self._deliveries:
            await delivery.restore()

    def _see(self, health: NodeHealth | None) -> None:
        if health is None:
            for delivery in self._deliveries:
                delivery.seen_all.set()
        elif self._own(health.node):
            self._health.see(health)
            for delivery in self._deliveries:
                delivery.see(health)
