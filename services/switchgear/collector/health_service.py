"""The gRPC edge of nodes' health."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.collector import health_store
from switchgear.collector.health import Condition, NodeHealth, NodeVerdict
from switchgear.collector.model import Severity
from switchgear.collector.verdicts import Verdicts
from switchgear.core import identity, names
from switchgear.core.catalog import End, Until
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.store import paging
from switchgear.store.database import Database
from switchgear.store.requests import once
from switchgear.store.revisions import current_revision
from switchgear.v1alpha import health_service_pb2 as pb
from switchgear.v1alpha.health_service_pb2_grpc import HealthServiceServicer

REASON_CHARS_MAX = 1000
_ACTOR_CHARS_MAX = 200
_NAME = "nodes/*/health"
_SEVERITIES = {Severity.WARNING: pb.Condition.WARNING, Severity.FATAL: pb.Condition.FATAL}
_NEW_STARTS = {
    Until.BOOT: "a boot of the node",
    Until.AGENT: "a new start of its agent",
    Until.COLLECTOR: "a new start of the collector",
}
Context = grpc.aio.ServicerContext[Any, Any]


class HealthApi(HealthServiceServicer):
    def __init__(self, database: Database, verdicts: Verdicts, clock: Clock) -> None:
        self._database, self._verdicts, self._clock = database, verdicts, clock

    async def GetNodeHealth(self, request: pb.GetNodeHealthRequest, context: Context) -> pb.NodeHealth:
        node = _node(request.name)
        async with self._database.read() as session:
            found = await health_store.health_of(session, node)
        if found is None:
            raise NotFound(request.name, f"nothing has told of {node} yet; `switchgear health` lists all nodes")
        return to_proto(found)

    async def ListNodeHealth(self, request: pb.ListNodeHealthRequest, context: Context) -> pb.ListNodeHealthResponse:
        verdicts = _verdicts(request.verdicts)
        collection = f"health {' '.join(verdicts)}"
        size = paging.page_size(request.page_size)
        after = paging.after_text(collection, request.page_token)
        async with self._database.read() as session:
            revision = await current_revision(session, health_store.SERVICE)
            found = await health_store.by_name(session, after or "", verdicts, size + 1)
        nodes = [to_proto(one) for one in found]
        count = paging.fitting(nodes[:size])
        return pb.ListNodeHealthResponse(
            nodes=nodes[:count],
            next_page_token=paging.page_token(collection, found[count - 1].node) if len(found) > count else "",
            revision=revision,
        )

    async def WatchNodeHealth(
        self, request: pb.WatchNodeHealthRequest, context: Context
    ) -> AsyncIterator[pb.WatchNodeHealthResponse]:
        async with self._database.read() as session:
            await health_store.require_whole(session, request.revision)
        async for revision, found in self._verdicts.feed.watch(request.revision, health_store.after_revision):
            yield pb.WatchNodeHealthResponse(health=to_proto(found) if found else None, revision=revision)

    async def ClearNodeHealth(self, request: pb.ClearNodeHealthRequest, context: Context) -> pb.NodeHealth:
        node = _node(request.name)
        reason = request.reason.replace("\0", "").strip()[:REASON_CHARS_MAX]
        if not reason:
            raise Invalid(
                "reason is missing: say why it is over, it is shown with the node", Reason.BAD_FIELD, field="reason"
            )
        actor = identity.actor(request.actor).replace("\0", "").strip()[:_ACTOR_CHARS_MAX] or "somebody"
        gpu = request.gpu if request.HasField("gpu") else None

        async with self._database.write() as session:

            async def act() -> pb.NodeHealth:
                return to_proto(await self._verdicts.clear(session, node, gpu, f"{actor} says: {reason}"))

            answer = await once(
                session, request.request_id, request, pb.NodeHealth, act, now_unix_ns=self._clock.unix_ns()
            )
        self._verdicts.changed()
        return answer


def to_proto(health: NodeHealth) -> pb.NodeHealth:
    return pb.NodeHealth(
        name=f"{health.node}/health",
        verdict=health.verdict.value,
        since_time=_timestamp(health.since_unix_ns),
        conditions=[_condition(health.node, one) for one in health.conditions],
        change=health.change,
    )


def _condition(node: str, one: Condition) -> pb.Condition:
    return pb.Condition(
        kind=one.kind,
        code=one.code or 0,
        gpu=names.gpu_name(node, one.subject.gpu) if one.subject.gpu is not None else "",
        subject=one.subject.text,
        severity=_SEVERITIES[one.severity],
        action=one.action,
        evidence=one.evidence,
        start_time=_timestamp(one.begin_unix_ns),
        newest_time=_timestamp(one.newest_unix_ns),
        count=one.count,
        ends=ends_text(one.end),
        simulated=one.simulated,
    )


def ends_text(end: End) -> str:
    """What ends it, for a person."""
    ways = sorted(end.ended_by)
    if end.until is not Until.NOTHING:
        ways.append(_NEW_STARTS[end.until])
    if end.quiet_s is not None:
        ways.append(f"{end.quiet_s / 60:g} minutes without it")
    return f"{', or '.join(ways) or 'nobody but an operator'}: {end.why}"


def _node(name: str) -> str:
    (node,) = names.parse(name, _NAME)
    return names.node_name(node)


def _verdicts(wanted: Iterable[int]) -> list[NodeVerdict]:
    listed = {pb.NodeHealth.Verdict.Value(verdict.value): verdict for verdict in NodeVerdict}
    del listed[pb.NodeHealth.FORGOTTEN]
    if wrong := [value for value in wanted if value not in listed]:
        raise Invalid(
            f"verdict {wrong[0]} is none that a listed node can have; give {', '.join(listed.values())}",
            Reason.BAD_FIELD,
            field="verdicts",
        )
    return sorted({listed[value] for value in wanted})


def _timestamp(unix_ns: int) -> Timestamp:
    return Timestamp(seconds=unix_ns // 1_000_000_000, nanos=unix_ns % 1_000_000_000)
