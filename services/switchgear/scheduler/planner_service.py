"""The scheduler's gRPC edge for what the planner goes by, and for questions to it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from switchgear.core import names
from switchgear.core.errors import AlreadyExists, FailedPrecondition, NotFound, Reason, ResourceExhausted
from switchgear.planner import model as planner
from switchgear.planner.records import snapshot_to_json
from switchgear.scheduler import rules_store, store
from switchgear.scheduler.decide import Snapshot, picture
from switchgear.scheduler.edges import Context, mutate
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.explaining import answered, explained
from switchgear.scheduler.model import QueueRecord, ReservationRecord
from switchgear.scheduler.planning import View
from switchgear.scheduler.repository import Repository, Transaction
from switchgear.scheduler.rules import (
    QUEUES_MAX,
    RESERVATIONS_MAX,
    queue_from_proto,
    queue_to_proto,
    require_tree,
    reservation_from_proto,
    reservation_to_proto,
    use_of,
)
from switchgear.v1alpha import planner_service_pb2 as pb
from switchgear.v1alpha import planner_service_pb2_grpc as pb_grpc


class PlannerServicer(pb_grpc.PlannerServiceServicer):
    """Queues, reservations, explanations."""

    def __init__(self, repository: Repository, engine: Engine) -> None:
        self._repository, self._engine = repository, engine
        # An answer takes several plans: questions wait for each other, and not the scheduler for them.
        self._thinking = asyncio.Semaphore(1)
        # What has not changed since the last question is not worked out again.
        self._view, self._viewing = View(repository.policy), asyncio.Lock()

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: Context) -> pb.Explanation:
        names.parse(request.name, "jobs/*")
        snapshot, now_s = await self._picture()
        if all(job.name != request.name for job in snapshot.pending) and all(
            one.job.name != request.name for one in snapshot.running
        ):
            async with self._repository.database.read() as session:
                job = await store.get_job(session, request.name)
            if job is None:
                raise NotFound(request.name)
            return pb.Explanation(job=job.name, text=f"it has ended as {job.state}: {job.message}")
        async with self._thinking:
            found = await asyncio.to_thread(explained, snapshot, request.name, now_s)
        async with self._repository.database.read() as session:
            job = await store.get_job(session, request.name)
        if job and job.turn.withheld:
            found.text += f"; {job.turn.withheld}"
        return found

    async def WhatIf(self, request: pb.WhatIfRequest, context: Context) -> pb.WhatIfResponse:
        snapshot, now_s = await self._picture()
        async with self._thinking:
            return await asyncio.to_thread(answered, snapshot, request.changes, now_s)

    async def GetPlannerSnapshot(self, request: pb.GetPlannerSnapshotRequest, context: Context) -> pb.PlannerSnapshot:
        snapshot, now_s = await self._picture()
        text = await asyncio.to_thread(lambda: zlib.compress(snapshot_to_json(snapshot, now_s), 3))
        return pb.PlannerSnapshot(json_zlib=text)

    async def _picture(self) -> tuple[planner.Snapshot, float]:
        """What a plan would be made from now, and its time."""
        _, snapshot = await self._repository.snapshot()
        now_unix_ns = self._repository.clock.unix_ns()
        seen = self._engine.observe()
        async with self._viewing:
            return await asyncio.to_thread(picture, snapshot, seen, now_unix_ns, self._view), now_unix_ns / 1e9

    async def CreateQueue(self, request: pb.CreateQueueRequest, context: Context) -> pb.Queue:
        queue = queue_from_proto(request.queue)

        async def act(transaction: Transaction) -> pb.Queue:
            known = await rules_store.queues(transaction.session)
            _require_new(queue.name, known, QUEUES_MAX)
            return await _put_queue(transaction, queue, known)

        return await mutate(self._repository, request.request_id, request, pb.Queue, act)

    async def UpdateQueue(self, request: pb.UpdateQueueRequest, context: Context) -> pb.Queue:
        request.queue.name = request.name or request.queue.name
        queue = queue_from_proto(request.queue)

        async def act(transaction: Transaction) -> pb.Queue:
            known = await rules_store.queues(transaction.session)
            _find(queue.name, known)
            return await _put_queue(transaction, queue, known)

        return await mutate(self._repository, request.request_id, request, pb.Queue, act)

    async def GetQueue(self, request: pb.GetQueueRequest, context: Context) -> pb.Queue:
        listed = (await self.ListQueues(pb.ListQueuesRequest(), context)).queues
        return _find(request.name, listed)

    async def ListQueues(self, request: pb.ListQueuesRequest, context: Context) -> pb.ListQueuesResponse:
        _, snapshot = await self._repository.snapshot()
        return pb.ListQueuesResponse(queues=_shown(snapshot, snapshot.rules.queues))

    async def DeleteQueue(self, request: pb.DeleteQueueRequest, context: Context) -> pb.DeleteQueueResponse:
        async def act(transaction: Transaction) -> pb.DeleteQueueResponse:
            snapshot = await transaction.snapshot()
            known = await rules_store.queues(transaction.session)
            _find(request.name, known)
            users = [queue.name for queue in known if queue.parent == request.name]
            users += [job.name for job in snapshot.jobs if job.spec.queue == request.name and not job.ended]
            if users:
                raise FailedPrecondition(
                    f"{request.name} is named by {users[0]}"
                    + (f" and {len(users) - 1} more" if len(users) > 1 else "")
                    + "; move or end them first",
                    Reason.QUEUE_IN_USE,
                    name=request.name,
                    user=users[0],
                )
            await rules_store.delete_queue(transaction.session, request.name)
            await transaction.rules_changed()
            return pb.DeleteQueueResponse()

        return await mutate(self._repository, request.request_id, request, pb.DeleteQueueResponse, act)

    async def CreateReservation(self, request: pb.CreateReservationRequest, context: Context) -> pb.Reservation:
        reservation = reservation_from_proto(request.reservation)

        async def act(transaction: Transaction) -> pb.Reservation:
            _require_new(reservation.name, await rules_store.reservations(transaction.session), RESERVATIONS_MAX)
            return await _put_reservation(transaction, reservation)

        return await mutate(self._repository, request.request_id, request, pb.Reservation, act)

    async def UpdateReservation(self, request: pb.UpdateReservationRequest, context: Context) -> pb.Reservation:
        request.reservation.name = request.name or request.reservation.name
        reservation = reservation_from_proto(request.reservation)

        async def act(transaction: Transaction) -> pb.Reservation:
            _find(reservation.name, await rules_store.reservations(transaction.session))
            return await _put_reservation(transaction, reservation)

        return await mutate(self._repository, request.request_id, request, pb.Reservation, act)

    async def GetReservation(self, request: pb.GetReservationRequest, context: Context) -> pb.Reservation:
        async with self._repository.database.read() as session:
            return reservation_to_proto(_find(request.name, await rules_store.reservations(session)))

    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        async with self._repository.database.read() as session:
            listed = await rules_store.reservations(session)
        return pb.ListReservationsResponse(reservations=[reservation_to_proto(one) for one in listed])

    async def DeleteReservation(
        self, request: pb.DeleteReservationRequest, context: Context
    ) -> pb.DeleteReservationResponse:
        async def act(transaction: Transaction) -> pb.DeleteReservationResponse:
            _find(request.name, await rules_store.reservations(transaction.session))
            await rules_store.delete_reservation(transaction.session, request.name)
            await transaction.rules_changed()
            return pb.DeleteReservationResponse()

        return await mutate(self._repository, request.request_id, request, pb.DeleteReservationResponse, act)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_Named)


def _find(name: str, known: Iterable[N]) -> N:
    """Raises NotFound."""
    for one in known:
        if one.name == name:
            return one
    raise NotFound(name)


def _require_new(name: str, known: Sequence[_Named], most: int) -> None:
    if any(one.name == name for one in known):
        raise AlreadyExists(
            f"{name} exists already; update it, or choose another name", Reason.ALREADY_EXISTS, name=name
        )
    if len(known) >= most:
        raise ResourceExhausted(f"there are {most} already; delete some", Reason.LIMIT_EXCEEDED, limit=str(most))


async def _put_queue(transaction: Transaction, queue: QueueRecord, known: Sequence[QueueRecord]) -> pb.Queue:
    require_tree([*(one for one in known if one.name != queue.name), queue])
    snapshot = await transaction.snapshot()
    await rules_store.save_queue(transaction.session, queue)
    await transaction.rules_changed()
    return _shown(snapshot, [queue])[0]


async def _put_reservation(transaction: Transaction, reservation: ReservationRecord) -> pb.Reservation:
    await rules_store.save_reservation(transaction.session, reservation)
    await rules_store.forget_reservations(transaction.session, transaction.now_unix_ns)
    await transaction.rules_changed()
    return reservation_to_proto(reservation)


def _shown(snapshot: Snapshot, queues: Sequence[QueueRecord]) -> list[pb.Queue]:
    use = use_of(snapshot.jobs, snapshot.rules.queues)
    return [queue_to_proto(queue, *use.get(queue.name, (0.0, 0))) for queue in queues]
