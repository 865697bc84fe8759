"""The table of routes that routers get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from switchgear.autoscaler.meter import Meter
from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec
from switchgear.autoscaler.repository import Snapshot
from switchgear.autoscaler.serving import ServingServicer
from switchgear.autoscaler.translate import routing_table
from switchgear.core.clock import ManualClock
from switchgear.v1alpha import serving_service_pb2 as wire

CHAT = "inferenceServices/chat"
SERVICE = ServiceRecord(CHAT, ServiceSpec(("serve.py",), "/w"), 0, desired=1, deleting=True)
READY = ReplicaRecord(
    CHAT, 1, f"{CHAT}/replicas/1", "jobs/chat-r1", 0, ReplicaState.READY, address="h:1", ready_time_unix_ns=1
)


def test_a_service_that_is_being_deleted_stays_with_replicas_that_take_nothing_new() -> None:
    (route,) = routing_table([SERVICE], [READY], 1).services
    assert (route.deleting, [(one.replica, one.draining) for one in route.replicas]) == (True, [(READY.name, True)])


async def test_routers_get_the_revision_that_a_drain_waits_for_though_their_table_says_nothing_new() -> None:
    async def find(_: str) -> ReplicaRecord | None:
        return None

    async def reports() -> AsyncIterator[wire.RouterReport]:
        yield wire.RouterReport(instance_id="r")

    servicer = ServingServicer(ManualClock(), Meter(), find, lambda: None)
    servicer.show(Snapshot(10, (SERVICE,), (READY,)))
    servicer.show(Snapshot(12, (SERVICE,), (replace(READY, state=ReplicaState.DRAINING, drain_revision=11),)))
    context: Any = None
    tables = servicer.ConnectRouter(reports(), context)
    assert (await anext(tables)).version == 12
