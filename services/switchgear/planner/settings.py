"""What a job or a queue asks for, by key and value in text: the settings of a change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import WHOLE, Job, Near, Queue

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
#: What is beyond is a slip of the pen, and may not fit the planner's integers.
_TASKS_MAX, _AMOUNT_MAX, _PRIORITY_MAX = 1 << 20, 1e9, 1 << 31
_MIB = 1024

S = TypeVar("S")


def setting(job: Job, key: str, value: str) -> Job:
    """The job with one setting. Raises Invalid when the key is unknown or the value cannot be read."""
    return _known(_OF_JOBS, key)(job, value)


def set_of_queue(queue: Queue, key: str, value: str) -> Queue:
    """The queue with one setting. Raises Invalid."""
    return _known(_OF_QUEUES, key)(queue, value)


def _known(settings: Mapping[str, S], key: str) -> S:
    if key not in settings:
        raise Invalid(f"{key!r} is no setting; there are {', '.join(settings)}", Reason.BAD_FIELD, key=key)
    return settings[key]


def _tasks(job: Job, value: str) -> Job:
    tasks = _whole(value, 1, _TASKS_MAX)
    return replace(job, tasks=tasks, tasks_min=min(job.tasks_min, tasks))


def _tasks_min(job: Job, value: str) -> Job:
    return replace(job, tasks_min=_whole(value, 1, job.tasks))


def _gpus(job: Job, value: str) -> Job:
    return _task(job, gpus=_whole(value, 0, _TASKS_MAX), gpu_milli=0, mig_profile="")


def _gpu_milli(job: Job, value: str) -> Job:
    return _task(job, gpus=0, gpu_milli=_whole(value, 1, WHOLE - 1), mig_profile="")


def _mig_profile(job: Job, value: str) -> Job:
    slices, point, _ = value.partition("g.")
    if not (slices.isdecimal() and point):
        raise _wrong(value, "a MIG profile, as 1g.10gb")
    return _task(job, gpus=0, gpu_milli=0, mig_profile=value)


def _cpus(job: Job, value: str) -> Job:
    return _task(job, cpu_milli=round(_number(value, 0, _AMOUNT_MAX) * 1000))


def _memory(job: Job, value: str) -> Job:
    return _task(job, memory_mib=round(_number(value, 0, _AMOUNT_MAX) * _MIB))


def _gpu_models(job: Job, value: str) -> Job:
    return _task(job, gpu_models=_names(value, nothing="any"))


def _near(job: Job, value: str) -> Job:
    levels = (one.partition(":") for one in value.split(",") if value != "none")
    found: list[Near] = []
    for level, _, how in levels:
        if not level or how not in ("", "preferred", "required"):
            raise _wrong(value, "levels, as spine,leaf:preferred; or none")
        found.append(Near(level, required=how != "preferred"))
    return replace(job, near=tuple(found))


def near_in_words(near: tuple[Near, ...]) -> str:
    """As `near=` reads it."""
    return ",".join(one.level if one.required else f"{one.level}:preferred" for one in near) or "none"


def _drop_labels(job: Job, value: str) -> Job:
    keys = _names(value, nothing="all")
    left = tuple(one for one in job.task.selectors if keys and one.key not in keys)
    return _task(job, selectors=left)


def _tolerates(job: Job, value: str) -> Job:
    return _task(job, tolerates=job.task.tolerates | _names(value, nothing="none"))


def _excluded(job: Job, value: str) -> Job:
    return replace(job, excluded=_names(value, nothing="none"))


def _queue(job: Job, value: str) -> Job:
    return replace(job, queue="" if value == "none" else value)


def _priority(job: Job, value: str) -> Job:
    return replace(job, priority=_whole(value, -_PRIORITY_MAX, _PRIORITY_MAX))


def _time_limit(job: Job, value: str) -> Job:
    return replace(job, time_limit_s=None if value == "none" else _seconds(value))


def _hold(job: Job, value: str) -> Job:
    return replace(job, held=(job.held or "held in this simulation") if _yes(value) else "")


def _not_before(job: Job, value: str) -> Job:
    if value != "now":
        raise _wrong(value, "now")
    return replace(job, not_before_s=0.0)


def _after(job: Job, value: str) -> Job:
    return replace(job, after=_names(value, nothing="none"))


_OF_JOBS: Mapping[str, Callable[[Job, str], Job]] = {
    "tasks": _tasks,
    "tasks-min": _tasks_min,
    "gpus": _gpus,
    "gpu-milli": _gpu_milli,
    "mig-profile": _mig_profile,
    "cpus": _cpus,
    "memory-gib": _memory,
    "gpu-models": _gpu_models,
    "near": _near,
    "drop-labels": _drop_labels,
    "tolerates": _tolerates,
    "excluded": _excluded,
    "queue": _queue,
    "priority": _priority,
    "time-limit": _time_limit,
    "hold": _hold,
    "not-before": _not_before,
    "after": _after,
    "one-a-node": lambda job, value: replace(job, one_a_node=_yes(value)),
    "preemptible": lambda job, value: replace(job, preemptible=_yes(value)),
    "harvest": lambda job, value: replace(job, harvest=_yes(value)),
}

_OF_QUEUES: Mapping[str, Callable[[Queue, str], Queue]] = {
    "guaranteed": lambda queue, value: replace(queue, guaranteed=_number(value, 0, _AMOUNT_MAX)),
    "limit": lambda queue, value: replace(queue, limit=None if value == "none" else _number(value, 0, _AMOUNT_MAX)),
    "weight": lambda queue, value: replace(queue, weight=_number(value, 1e-6, _AMOUNT_MAX)),
}


def _task(job: Job, **fields: object) -> Job:
    return replace(job, task=replace(job.task, **fields))  # type: ignore[arg-type]  # each caller names fields of Task


def _names(value: str, *, nothing: str) -> frozenset[str]:
    return frozenset() if value == nothing else frozenset(filter(None, value.split(",")))


def _yes(value: str) -> bool:
    if value not in ("yes", "no"):
        raise _wrong(value, "yes or no")
    return value == "yes"


def _seconds(value: str) -> float:
    unit = _SECONDS.get(value[-1:])
    return _number(value[:-1] if unit else value, 1e-3, _AMOUNT_MAX) * (unit or 1.0)


def _number(value: str, low: float, high: float) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not low <= found <= high:
        raise _wrong(value, f"a number from {low:g} to {high:g}")
    return found


def _whole(value: str, low: int, high: int) -> int:
    found = _number(value, low, high)
    if found != int(found):
        raise _wrong(value, "a whole number")
    return int(found)


def _wrong(value: str, want: str) -> Invalid:
    return Invalid(f"{value!r} is not understood; write {want}", Reason.BAD_FIELD, value=value)
