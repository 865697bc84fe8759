"""The gRPC edge towards people and programs: `RecoveryService`, from the store and the live jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from switchgear.core import names
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.recovery import model as m
from switchgear.recovery import store, translate
from switchgear.recovery.goodput import Sum, told_apart
from switchgear.recovery.goodput_messages import goodput_to_proto, reliability_to_proto
from switchgear.recovery.ledger import Ledger, settled_at
from switchgear.recovery.machine import resume
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.store.paging import after_number, fitting, page_size, page_token
from switchgear.store.revisions import current_revision
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1 import recovery_service_pb2_grpc as rpc

_Context = grpc.aio.ServicerContext[Any, Any]


class RecoveryApi(rpc.RecoveryServiceServicer):
    """live: the newest state of a job that has not ended, or None."""

    def __init__(
        self, database: Database, feed: ChangeFeed, clock: Clock, live: Callable[[str], m.JobState | None]
    ) -> None:
        self._database, self._feed, self._clock, self._live = database, feed, clock, live

    async def GetIncident(self, request: pb.GetIncidentRequest, context: _Context) -> pb.Incident:
        (incident_id,) = names.parse(request.name, "incidents/*")
        async with self._database.read() as session:
            incident = await store.incident(session, incident_id)
        if incident is None:
            raise NotFound(request.name)
        return translate.incident_to_proto(incident)

    async def ListIncidents(
        self,
        request: pb.ListIncidentsRequest,
        context: _Context,
    ) -> pb.ListIncidentsResponse:
        if request.job:
            names.parse(request.job, "jobs/*")
        size, collection = page_size(request.page_size), f"incidents of {request.job}"
        before = after_number(collection, request.page_token)
        async with self._database.read() as session:
            rows = await store.incidents(session, request.job, before, size + 1)
            revision = await current_revision(session, store.SERVICE)
        incidents = [translate.incident_to_proto(incident) for _, incident in rows[:size]]
        fits = fitting(incidents)  # each may have a stack and twenty pieces of evidence
        return pb.ListIncidentsResponse(
            incidents=incidents[:fits],
            next_page_token=page_token(collection, rows[fits - 1][0]) if len(rows) > fits else "",
            revision=revision,
        )

    async def WatchIncidents(
        self,
        request: pb.WatchIncidentsRequest,
        context: _Context,
    ) -> AsyncIterator[pb.WatchIncidentsResponse]:
        async for revision, incident in self._feed.watch(request.revision, store.incidents_after):
            message = translate.incident_to_proto(incident) if incident else None
            yield pb.WatchIncidentsResponse(incident=message, revision=revision)

    async def ListAttempts(
        self,
        request: pb.ListAttemptsRequest,
        context: _Context,
    ) -> pb.ListAttemptsResponse:
        names.parse(request.parent, "jobs/*")
        size, collection = page_size(request.page_size), f"attempts of {request.parent}"
        after = after_number(collection, request.page_token) or 0
        async with self._database.read() as session:
            await self._require_job(session, request.parent)
            rows = await store.attempts(session, request.parent, after, size + 1)
        live = self._live(request.parent)
        if live and live.attempt:  # the store has it as it began: progress is not written down
            rows = [live.attempt if row.generation == live.attempt.generation else row for row in rows]
        page = rows[:size]
        return pb.ListAttemptsResponse(
            attempts=[translate.attempt_to_proto(request.parent, attempt) for attempt in page],
            next_page_token=page_token(collection, page[-1].generation) if len(rows) > size else "",
        )

    async def ListCheckpoints(
        self,
        request: pb.ListCheckpointsRequest,
        context: _Context,
    ) -> pb.ListCheckpointsResponse:
        names.parse(request.parent, "jobs/*")
        size, collection = page_size(request.page_size), f"checkpoints of {request.parent}"
        start = after_number(collection, request.page_token) or 0
        async with self._database.read() as session:
            await self._require_job(session, request.parent)
            # At most 1,000 a job are remembered, so the sorted list is cut here and not in SQL.
            rows = await store.checkpoints(session, request.parent)
        page = rows[start : start + size]
        end = start + len(page)
        return pb.ListCheckpointsResponse(
            checkpoints=[
                translate.checkpoint_to_proto(request.parent, store.checkpoint_id(row.path), row) for row in page
            ],
            next_page_token=page_token(collection, end) if end < len(rows) else "",
        )

    async def GetJobProgress(
        self,
        request: pb.GetJobProgressRequest,
        context: _Context,
    ) -> pb.JobProgress:
        (job,) = names.parse(request.name, "jobs/*/progress")
        state = self._live(f"jobs/{job}")
        if state is None:
            async with self._database.read() as session:
                state = await store.state_of(session, f"jobs/{job}")
        if state is None:
            raise NotFound(request.name, f"jobs/{job} does not exist or has not been placed yet")
        return translate.progress_to_proto(state, self._clock.unix_ns())

    async def GetJobGoodput(
        self,
        request: pb.GetJobGoodputRequest,
        context: _Context,
    ) -> pb.JobGoodput:
        (job,) = names.parse(request.name, "jobs/*/goodput")
        state = self._live(f"jobs/{job}")
        if state is None:
            async with self._database.read() as session:
                stored = await store.state_of(session, f"jobs/{job}")
            state = stored and resume(stored, self._now())
        if state is None:
            raise NotFound(request.name, f"jobs/{job} does not exist or has not been placed yet")
        return goodput_to_proto(state, self._now())

    async def GetReliability(
        self,
        request: pb.GetReliabilityRequest,
        context: _Context,
    ) -> pb.Reliability:
        grouped = pb.GetReliabilityRequest.GroupBy
        if request.group_by not in grouped.values():
            raise Invalid(
                f"group_by must be ACCOUNT, USER or QUEUE, not {request.group_by}", Reason.BAD_FIELD, field="group_by"
            )
        owner = grouped.Name(request.group_by).lower() if request.group_by else "account"
        sums = defaultdict[str, Sum](lambda: Sum(by_node=False))
        total = Sum()

        def add(name: str, ledger: Ledger) -> None:
            total.add(ledger)
            if request.group_by:
                sums[name].add(ledger)

        async with self._database.read() as session:
            async for name, ledger in store.ended_ledgers(session, owner):
                add(name, ledger)
            going = [state for state in await store.running(session) if not state.spec.inference]
        now = self._now()
        for state in going:
            add(getattr(state.spec, owner), settled_at(self._live(state.job) or resume(state, now), now))
        return reliability_to_proto(total.told(), told_apart(sums))

    def _now(self) -> m.Now:
        return m.Now(self._clock.monotonic_s(), self._clock.unix_ns())

    async def _require_job(self, session: Any, job: str) -> None:
        if await store.state_of(session, job) is None:
            raise NotFound(job, f"{job} does not exist or has not been placed yet")
