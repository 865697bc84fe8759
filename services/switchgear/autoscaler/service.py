"""The autoscaler's gRPC edge for people and programs: checks, translates and stores; the loop does the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.autoscaler import store
from switchgear.autoscaler.model import Load, ServiceRecord
from switchgear.autoscaler.policy import Cause, within_bounds
from switchgear.autoscaler.repository import Repository, Transaction
from switchgear.autoscaler.spec import bad, bounds_from_proto, spec_from_proto
from switchgear.autoscaler.translate import etag, replica_to_proto, service_to_proto
from switchgear.core import names
from switchgear.core.errors import Aborted, FailedPrecondition, NotFound, Reason
from switchgear.store import paging
from switchgear.store.requests import once
from switchgear.store.revisions import current_revision
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import autoscaler_service_pb2_grpc as pb_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AutoscalerServicer(pb_grpc.AutoscalerServiceServicer):
    """Inference services, as `AutoscalerService` shows them. loads: newest reports of connected replicas, by name."""

    def __init__(self, repository: Repository, loads: Callable[[], Mapping[str, Load]]) -> None:
        self._repository, self._loads = repository, loads

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
                name, spec, now, spec.min_replicas, cause=Cause.BOUNDS, decision=text, decide_time_unix_ns=now
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
            return (await _to_proto(session, [service]))[0]

    async def ListInferenceServices(
        self, request: pb.ListInferenceServicesRequest, context: Context
    ) -> pb.ListInferenceServicesResponse:
        size = paging.page_size(request.page_size)
        after = paging.after_text("inferenceServices", request.page_token)
        async with self._repository.database.read() as session:
            found = await _to_proto(session, await store.services_after_name(session, after or "", size + 1))
            revision = await current_revision(session, store.SERVICE)
        page = found[: paging.fitting(found[:size])]
        token = paging.page_token("inferenceServices", page[-1].name) if len(found) > len(page) else ""
        return pb.ListInferenceServicesResponse(inference_services=page, next_page_token=token, revision=revision)

    async def WatchInferenceServices(
        self, request: pb.WatchInferenceServicesRequest, context: Context
    ) -> AsyncIterator[pb.WatchInferenceServicesResponse]:
        async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, pb.InferenceService]]:
            services = await store.services_after_revision(session, after, limit)
            return list(zip((one.revision for one in services), await _to_proto(session, services), strict=True))

        async for revision, service in self._repository.feed.watch(request.revision, page):
            yield pb.WatchInferenceServicesResponse(inference_service=service, revision=revision)

    async def ScaleInferenceService(
        self, request: pb.ScaleInferenceServiceRequest, context: Context
    ) -> pb.InferenceService:
        names.parse(request.name, "inferenceServices/*")
        low, high = bounds_from_proto(request.min_replicas, request.max_replicas)

        async def act(transaction: Transaction) -> pb.InferenceService:
            service = await transaction.service(request.name)
            if service.deleting:
                raise FailedPrecondition(
                    f"{service.name} is being deleted; create another one", Reason.BEING_DELETED, name=service.name
                )
            if request.etag and request.etag != etag(service):
                raise Aborted(
                    f"{service.name} has changed since it was read; read it again and decide anew",
                    Reason.ETAG_MISMATCH,
                    name=service.name,
                    etag=etag(service),
                )
            after = _bounded(
                replace(service, spec=replace(service.spec, min_replicas=low, max_replicas=high)), transaction
            )
            stored = after if after == service else await transaction.put_service(after)
            return (await _to_proto(transaction.session, [stored]))[0]

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
            return (await _to_proto(transaction.session, [service]))[0]

        return await self._mutate(request.request_id, request, act)

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


def _bounded(service: ServiceRecord, transaction: Transaction) -> ServiceRecord:
    """What a person says about the number holds at once, whatever the policy may do."""
    decision = within_bounds(service.spec, service.desired)
    if decision.replicas == service.desired:
        return service
    return replace(
        service,
        desired=decision.replicas,
        cause=decision.cause.value,
        decision=decision.text,
        decide_time_unix_ns=transaction.now_unix_ns,
    )


async def _to_proto(session: AsyncSession, services: Sequence[ServiceRecord]) -> list[pb.InferenceService]:
    ready = await store.ready_replicas(session, (service.name for service in services))
    return [service_to_proto(service, ready.get(service.name, 0)) for service in services]
