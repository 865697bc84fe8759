"""Snapshots and decisions as JSON, exactly: floats come back as they were, so that a plan can be made again elsewhere and later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import Decisions, Job, Snapshot, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Stored:
    """JSON has no keys of two parts: use is listed. at_s: when the snapshot was taken."""

    at_s: float
    snapshot: Snapshot
    used: tuple[tuple[str, str, float], ...] = field(default=())


_SNAPSHOT = TypeAdapter(_Stored)
_DECISIONS = TypeAdapter(Decisions)


def snapshot_to_json(snapshot: Snapshot, at_s: float) -> bytes:
    """at_s: the time for which it is planned."""
    used = tuple((queue, user, gpu_s) for (queue, user), gpu_s in sorted(snapshot.used_gpu_s.items()))
    return _SNAPSHOT.dump_json(_Stored(at_s, replace(snapshot, used_gpu_s={}), used), exclude_defaults=True)


def snapshot_from_json(text: bytes) -> tuple[Snapshot, float]:
    """The snapshot, in which equal tasks are one object, and its time. Raises Invalid."""
    stored = _read(_SNAPSHOT, text)
    tasks: dict[Task, Task] = {}

    def shared(job: Job) -> Job:
        return replace(job, task=tasks.setdefault(job.task, job.task))

    snapshot = replace(
        stored.snapshot,
        pending=tuple(shared(job) for job in stored.snapshot.pending),
        running=tuple(replace(one, job=shared(one.job)) for one in stored.snapshot.running),
        used_gpu_s={(queue, user): gpu_s for queue, user, gpu_s in stored.used},
    )
    return snapshot, stored.at_s


def decisions_to_json(decisions: Decisions) -> bytes:
    return _DECISIONS.dump_json(decisions, exclude_defaults=True)


def decisions_from_json(text: bytes) -> Decisions:
    """Raises Invalid."""
    return _read(_DECISIONS, text)


def _read(adapter: TypeAdapter[T], text: bytes) -> T:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first: Mapping[str, Any] = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(
            f"this is no snapshot that this version of Switchgear has written: {where}: {first['msg']}",
            Reason.BODY_INVALID,
        ) from error
