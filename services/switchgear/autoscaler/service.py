"""The autoscaler's gRPC edge for people and programs: checks, translates and stores; the loop does the rest."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.autoscaler import store
from switchgear.autoscaler.decision_file import Tail
from switchgear.autoscaler.model import Load, ServiceRecord
from switchgear.autoscaler.plan import BOUNDS, within_bounds
from switchgear.autoscaler.repository import Repository, Transaction
from switchgear.autoscaler.scaling import Scaling
from switchgear.autoscaler.sharing import Sharing
from switchgear.autoscaler.spec import bad, bounds_from_proto, shadow_policy, spec_from_proto
from switchgear.autoscaler.translate import etag, replica_to_proto, service_to_proto
from switchgear.autoscaler.update import updated
from switchgear.core import names
from switchgear.core.errors import Aborted, FailedPrecondition, NotFound, Reason
from switchgear.store import paging
from switchgear.store.requests import once
from switchgear.store.revisions import current_revision
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import autoscaler_service_pb2_grpc as pb_grpc

#: Lines of a log that are read at a time, and that may be asked for as the newest.
LINES = 100
NEWEST_MAX = 10_000
#: Between two looks at a log that somebody follows.
FOLLOW_S = 0.5

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AutoscalerServicer(pb_grpc.AutoscalerServiceServicer):
    """Inference services, as `AutoscalerService` shows them.

    loads: newest reports of connected replicas, by name. scaling: the policies of a service. sharing: what it has of
    others. log: the folder of its decision log; None:
    none is kept.
    """

    def __init__(
        self,
        repository: Repository,
        loads: Callable[[], Mapping[str, Load]],
        scaling: Callable[[str], Scaling | None],
        sharing: Callable[[str], Sharing],
        log: Callable[[str], Path | None],
    ) -> None:
        self._repository, self._loads, self._scaling, self._log = repository, loads, scaling, log
        self._sharing = sharing

    async def CreateInferenceService(
        self, request: pb.CreateInferenceServiceRequest, context: Context
    ) -> pb.InferenceService:
        if not request.service_id:
            raise bad("service_id", "is missing: choose one, clients name the service by it")
        name = names.inference_service_name(request.service_id)
        spec = spec_from_proto(request.inference_service.spec)

        async def act(transaction: Transaction) -> pb.InferenceService:
            now = transaction.now_unix_ns
            first = f"begins with {spec.min_replicas}"
            text = f"{first}: min_replicas" if spec.min_replicas else f"{first}: the first request brings more"
            service = ServiceRecord(
                name, spec, now, spec.min_replicas, cause=BOUNDS, decision=text, decide_time_unix_ns=now
            )
            return service_to_proto(await transaction.add_service(service), 0)

        return await self._mutate(request.request_id, request, act)

    async def GetInferenceService(
        self, request: pb.GetInferenceServiceRequest, context: Context
    ) -> pb.InferenceService:
        names.parse(request.name, "inferenceServices/*")
        async with self._repository.database.read() as session:
            service = await store.get_service(session, request.name)
            if service is None:
                raise NotFound(request.name)
            return (await self._to_proto(session, [service]))[0]

    async def ListInferenceServices(
        self, request: pb.ListInferenceServicesRequest, context: Context
    ) -> pb.ListInferenceServicesResponse:
        size = paging.page_size(request.page_size)
        after = paging.after_text("inferenceServices", request.page_token)
        async with self._repository.database.read() as session:
            found = await self._to_proto(session, await store.services_after_name(session, after or "", size + 1))
            revision = await current_revision(session, store.SERVICE)
        page = found[: paging.fitting(found[:size])]
        token = paging.page_token("inferenceServices", page[-1].name) if len(found) > len(page) else ""
        return pb.ListInferenceServicesResponse(inference_services=page, next_page_token=token, revision=revision)

    async def WatchInferenceServices(
        self, request: pb.WatchInferenceServicesRequest, context: Context
    ) -> AsyncIterator[pb.WatchInferenceServicesResponse]:
        async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, pb.InferenceService]]:
            services = await store.services_after_revision(session, after, limit)
            return list(zip((one.revision for one in services), await self._to_proto(session, services), strict=True))

        async for revision, service in self._repository.feed.watch(request.revision, page):
            yield pb.WatchInferenceServicesResponse(inference_service=service, revision=revision)

    async def ScaleInferenceService(
        self, request: pb.ScaleInferenceServiceRequest, context: Context
    ) -> pb.InferenceService:
        names.parse(request.name, "inferenceServices/*")
        low, high = bounds_from_proto(request.min_replicas, request.max_replicas)

        async def act(transaction: Transaction) -> pb.InferenceService:
            service = await _changeable(transaction, request.name, request.etag)
            after = _bounded(
                replace(service, spec=replace(service.spec, min_replicas=low, max_replicas=high)), transaction
            )
            stored = after if after == service else await transaction.put_service(after)
            return (await self._to_proto(transaction.session, [stored]))[0]

        return await self._mutate(request.request_id, request, act)

    async def UpdateInferenceService(
        self, request: pb.UpdateInferenceServiceRequest, context: Context
    ) -> pb.InferenceService:
        names.parse(request.name, "inferenceServices/*")

        async def act(transaction: Transaction) -> pb.InferenceService:
            service = await _changeable(transaction, request.name, request.etag)
            given = pb.InferenceServiceSpec()
            given.CopyFrom(request.spec)
            given.min_replicas, given.max_replicas = service.spec.min_replicas, service.spec.max_replicas
            after = _bounded(updated(service, spec_from_proto(given)), transaction)
            stored = after if after == service else await transaction.put_service(after)
            return (await self._to_proto(transaction.session, [stored]))[0]

        return await self._mutate(request.request_id, request, act)

    async def DeleteInferenceService(
        self, request: pb.DeleteInferenceServiceRequest, context: Context
    ) -> pb.InferenceService:
        names.parse(request.name, "inferenceServices/*")

        async def act(transaction: Transaction) -> pb.InferenceService:
            service = await transaction.service(request.name)
            if not service.deleting:
                text = "is being deleted: its replicas finish their requests"
                service = replace(service, deleting=True, advised=None, decision=text, hindrance="")
                service = await transaction.put_service(service)
            return (await self._to_proto(transaction.session, [service]))[0]

        return await self._mutate(request.request_id, request, act)

    async def SetShadowPolicy(self, request: pb.SetShadowPolicyRequest, context: Context) -> pb.InferenceService:
        names.parse(request.name, "inferenceServices/*")
        shadow = shadow_policy(request.policy, "policy")

        async def act(transaction: Transaction) -> pb.InferenceService:
            service = await transaction.service(request.name)
            if shadow != service.spec.shadow_policy:
                service = replace(service, spec=replace(service.spec, shadow_policy=shadow))
                service = await transaction.put_service(service)
            return (await self._to_proto(transaction.session, [service]))[0]

        return await self._mutate(request.request_id, request, act)

    async def WatchDecisions(
        self, request: pb.WatchDecisionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        await self._require(request.name)
        folder = self._log(request.name)
        if folder is None:
            raise FailedPrecondition("this autoscaler keeps no decision log", Reason.NOT_FOUND, name=request.name)
        tail = Tail(folder)
        if request.newest > 0:
            newest = await asyncio.to_thread(lambda: deque(_records(tail), min(request.newest, NEWEST_MAX)))
            for line in newest:
                yield pb.WatchDecisionsResponse(line=line)
        while True:
            lines = tail.lines()  # one for all pages: each looks for its place in a compressed file from the beginning
            while some := await asyncio.to_thread(list, islice(lines, LINES)):
                for line in some:
                    yield pb.WatchDecisionsResponse(line=line)
            if not request.follow:
                return
            await asyncio.sleep(FOLLOW_S)
            await self._require(request.name)  # nothing comes of one that is gone

    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Context) -> pb.ListReplicasResponse:
        names.parse(request.parent, "inferenceServices/*")
        size = paging.page_size(request.page_size)
        collection = f"{request.parent}/replicas"
        before = paging.after_number(collection, request.page_token)
        async with self._repository.database.read() as session:
            if await store.get_service(session, request.parent) is None:
                raise NotFound(request.parent)
            replicas = await store.replicas_before(session, request.parent, before, size + 1)
        loads = self._loads()
        found = [replica_to_proto(one, None if one.ended else loads.get(one.name)) for one in replicas]
        count = paging.fitting(found[:size])
        token = paging.page_token(collection, replicas[count - 1].number) if len(found) > count else ""
        return pb.ListReplicasResponse(replicas=found[:count], next_page_token=token)

    async def _require(self, name: str) -> None:
        """Raises NotFound."""
        names.parse(name, "inferenceServices/*")
        async with self._repository.database.read() as session:
            if await store.get_service(session, name) is None:
                raise NotFound(name)

    async def _to_proto(self, session: AsyncSession, services: Sequence[ServiceRecord]) -> list[pb.InferenceService]:
        ready = await store.ready_replicas(session, (service.name for service in services))
        return [
            service_to_proto(one, ready.get(one.name, 0), self._scaling(one.name), self._sharing(one.name))
            for one in services
        ]

    async def _mutate(
        self, request_id: str, request: Message, act: Callable[[Transaction], Awaitable[pb.InferenceService]]
    ) -> pb.InferenceService:
        async with self._repository.write() as transaction:
            return await once(
                transaction.session,
                request_id,
                request,
                pb.InferenceService,
                lambda: act(transaction),
                now_unix_ns=transaction.now_unix_ns,
            )


async def _changeable(transaction: Transaction, name: str, seen: str) -> ServiceRecord:
    """The service. Raises NotFound, FailedPrecondition while it is being deleted, Aborted when `seen` is not its etag."""
    service = await transaction.service(name)
    if service.deleting:
        raise FailedPrecondition(
            f"{service.name} is being deleted; create another one", Reason.BEING_DELETED, name=service.name
        )
    if seen and seen != etag(service):
        raise Aborted(
            f"{service.name} has changed since it was read; read it again and decide anew",
            Reason.ETAG_MISMATCH,
            name=service.name,
            etag=etag(service),
        )
    return service


def _bounded(service: ServiceRecord, transaction: Transaction) -> ServiceRecord:
    """What a person says about the number holds at once, whatever the policy may do."""
    decision = within_bounds(service.spec, service.desired)
    if decision.replicas == service.desired:
        return service
    return replace(
        service,
        desired=decision.replicas,
        cause=decision.cause,
        decision=decision.text,
        decide_time_unix_ns=transaction.now_unix_ns,
    )


def _records(tail: Tail) -> Iterator[str]:
    """Lines without heads."""
    return (line for line in tail.lines() if not line.startswith('{"log":'))
