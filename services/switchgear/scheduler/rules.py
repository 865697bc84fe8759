"""Queues and reservations as people write them: checked, and between the wire and the scheduler's values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.core import names
from switchgear.core.errors import Invalid, Reason
from switchgear.scheduler.model import JobRecord, JobState, QueueRecord, ReservationRecord
from switchgear.scheduler.planning import gpus_of
from switchgear.scheduler.translate import clean
from switchgear.v1alpha import planner_service_pb2 as pb

#: Every plan looks at all of them; each is written by a person.
QUEUES_MAX = 1000
RESERVATIONS_MAX = 1000
#: A tree that is deeper says nothing more to anybody.
DEPTH_MAX = 8
GPUS_MAX = 10_000_000
WEIGHT_MAX = 1e6
NAMES_MAX = 10_000
REASON_LENGTH_MAX = 1000


def queue_from_proto(queue: pb.Queue) -> QueueRecord:
    """Raises Invalid (BAD_NAME, BAD_FIELD) that names the field."""
    names.parse(queue.name, "queues/*")
    if queue.parent:
        names.parse(queue.parent, "queues/*")
    _within("guaranteed_gpus", queue.guaranteed_gpus, 0, GPUS_MAX)
    limit = queue.limit_gpus if queue.HasField("limit_gpus") else None
    if limit is not None:
        _within("limit_gpus", limit, queue.guaranteed_gpus, GPUS_MAX)
    weight = queue.weight if queue.HasField("weight") else 1.0
    _within("weight", weight, 0, WEIGHT_MAX)
    return QueueRecord(queue.name, queue.parent, queue.guaranteed_gpus, limit, weight, queue.keeps)


def queue_to_proto(queue: QueueRecord, used_gpus: float, pending_jobs: int) -> pb.Queue:
    return pb.Queue(
        name=queue.name,
        parent=queue.parent,
        guaranteed_gpus=queue.guaranteed_gpus,
        limit_gpus=queue.limit_gpus,
        weight=queue.weight,
        keeps=queue.keeps,
        used_gpus=used_gpus,
        pending_jobs=pending_jobs,
    )


def require_tree(queues: Sequence[QueueRecord]) -> None:
    """Raises Invalid when a parent is missing, a queue is below itself or too deep, or children are guaranteed more than their parent."""
    by_name = {queue.name: queue for queue in queues}
    guaranteed: dict[str, float] = {}
    for queue in queues:
        depth, above = 0, queue
        while above.parent:
            depth += 1
            if above.parent not in by_name:
                raise _bad("parent", f"{above.parent} does not exist; create it first")
            if depth > DEPTH_MAX:
                raise _bad("parent", f"{queue.name} is below itself, or deeper than {DEPTH_MAX} levels")
            above = by_name[above.parent]
        guaranteed[queue.parent] = guaranteed.get(queue.parent, 0.0) + queue.guaranteed_gpus
    for name, promised in guaranteed.items():
        if name and promised > by_name[name].guaranteed_gpus:
            raise _bad(
                "guaranteed_gpus",
                f"queues below {name} would have {promised:g} guaranteed, and it has {by_name[name].guaranteed_gpus:g}; raise that first",
            )


def reservation_from_proto(reservation: pb.Reservation) -> ReservationRecord:
    """Raises Invalid (BAD_NAME, BAD_FIELD, LIMIT_EXCEEDED) that names the field."""
    names.parse(reservation.name, "reservations/*")
    for field, pattern in (("nodes", "nodes/*"), ("queues", "queues/*"), ("jobs", "jobs/*")):
        listed: Sequence[str] = getattr(reservation, field)
        if len(listed) > NAMES_MAX:
            raise Invalid(f"{field} has at most {NAMES_MAX} names", Reason.LIMIT_EXCEEDED, field=field)
        for name in listed:
            names.parse(name, pattern)
    if not reservation.nodes:
        raise _bad("nodes", "is empty: name those that are to be kept")
    start, end = reservation.start_time.ToNanoseconds(), reservation.end_time.ToNanoseconds()
    if not 0 < start < end:
        raise _bad("end_time", "must come after start_time, and both be given")
    return ReservationRecord(
        reservation.name,
        tuple(sorted(set(reservation.nodes))),
        start,
        end,
        tuple(sorted(set(reservation.queues))),
        tuple(sorted(set(reservation.jobs))),
        clean(reservation.reason, REASON_LENGTH_MAX),
    )


def reservation_to_proto(one: ReservationRecord) -> pb.Reservation:
    return pb.Reservation(
        name=one.name,
        nodes=one.nodes,
        start_time=_timestamp(one.start_unix_ns),
        end_time=_timestamp(one.end_unix_ns),
        queues=one.queues,
        jobs=one.jobs,
        reason=one.reason,
    )


def use_of(jobs: Iterable[JobRecord], queues: Sequence[QueueRecord]) -> dict[str, tuple[float, int]]:
    """By queue: GPUs that its jobs and those below it hold, without what is harvested, and jobs of its own that wait."""
    own, pending = dict[str, float](), Counter[str]()
    for job in jobs:
        if job.state is JobState.PENDING:
            pending[job.spec.queue] += 1
        elif not job.ended and not job.spec.harvest:
            own[job.spec.queue] = own.get(job.spec.queue, 0.0) + gpus_of(job)
    return {name: (used, pending[name]) for name, used in used_by_queue(own, queues).items()}


def used_by_queue(own: Mapping[str, float], queues: Sequence[QueueRecord]) -> dict[str, float]:
    """What each queue uses with all that is below it. own: what jobs of the queue itself do. The queues are a tree."""
    parent = {queue.name: queue.parent for queue in queues}
    used = dict.fromkeys(parent, 0.0)
    for name, gpus in own.items():
        while name in used:
            used[name] += gpus
            name = parent[name]
    return used


def _within(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise _bad(field, f"must be {low:g} to {high:g}, not {value:g}")


def _bad(field: str, problem: str) -> Invalid:
    return Invalid(f"{field}: {problem}", Reason.BAD_FIELD, field=field)


def _timestamp(unix_ns: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(unix_ns)
    return timestamp
