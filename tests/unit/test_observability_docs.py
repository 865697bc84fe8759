"""docs/observability.md lists what the code shows, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from switchgear.access.guard import guard
from switchgear.agent.association.sources import Table, UserMetrics
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.outbox import Outbox
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.spool import Spool
from switchgear.agent.stream import Identity, TelemetryStream
from switchgear.autoscaler.external.board import Board
from switchgear.autoscaler.external.metrics import BoardCollector, ExternalMetrics
from switchgear.autoscaler.metrics import AutoscalerMetrics
from switchgear.cli.compose import lease_held
from switchgear.collector.export.exporters import Exporters
from switchgear.collector.followers import Followers
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.recording.metrics import RecordingMetrics
from switchgear.core.clock import ManualClock
from switchgear.core.metrics import ServerMetrics, new_registry
from switchgear.gateway.metrics import PolicyMetrics, RequestMetrics
from switchgear.recovery.metrics import RecoveryMetrics
from switchgear.scheduler.metrics import SchedulerMetrics
from switchgear.serve.replica_metrics import ReplicaMetrics
from switchgear.serve.router_metrics import RouterMetrics
from switchgear.store.database import Database, sqlite_url
from switchgear.store.feed import ChangeFeed
from switchgear.store.policies import PolicyModes

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
ROW = re.compile(r"^\| `([\w:]+)` \| (gauge|counter|histogram) \|", re.MULTILINE)


def everything(folder: Path) -> CollectorRegistry:
    """One registry with the metrics of all components."""
    registry, clock = new_registry("test"), ManualClock()
    database = Database(sqlite_url(folder / "state.db"))  # never opened
    ServerMetrics(registry)
    lease_held(registry)
    SchedulerMetrics(registry)
    RecoveryMetrics(registry, clock, list)
    CollectorMetrics(registry)
    Exporters((), (), clock, registry)
    Followers((), database, ChangeFeed(database, "health"), clock, registry, own=bool)
    ImportMetrics(registry)
    RecordingMetrics(registry)
    AutoscalerMetrics(registry)
    ExternalMetrics(registry)
    registry.register(BoardCollector(Board((), clock), clock))
    RouterMetrics(registry)
    ReplicaMetrics(registry, "gpt")
    RequestMetrics(registry)
    PolicyMetrics(registry, PolicyModes(database))
    guard(database, clock, None, registry)
    spool = Spool(folder / "spool", "boot")
    outbox = Outbox(Sampler(), spool, SampleSpool(folder / "samples", "epoch"))
    stream = TelemetryStream("127.0.0.1:9", Identity("nodes/a", "b", "c", "d"), outbox, clock)
    AgentMetrics(registry, outbox, stream, launchers_warm=int)
    registry.register(UserMetrics(Table))
    outbox.close()
    spool.close()
    return registry


async def test_the_documented_metrics_are_those_of_the_code(tmp_path: Path) -> None:
    shown = {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
        for family in everything(tmp_path).collect()
        if not family.name.startswith("process_")
    }
    assert set(ROW.findall(DOCS.read_text())) == shown


async def test_each_metric_says_what_it_is(tmp_path: Path) -> None:
    assert [family.name for family in everything(tmp_path).collect() if not family.documentation] == []
