"""A rolling update: replicas that run an older specification are replaced one by one. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec, World

#: A replica that is to come before an old one goes waits so long for a GPU; then an old one makes room. Long enough for a checkpoint or a
#: job that ends just now, and short beside the start that follows.
SURGE_PATIENCE_S = 30.0
#: Causes of `Job.wait_cause` with which GPUs that the service gives back would help.
FOR_GPUS = frozenset({"QUOTA", "GPUS", "FRAGMENTED", "BEHIND", "TOPOLOGY", "GPU_MODEL", "CPU", "MEMORY"})


@dataclass(frozen=True, slots=True)
class Step:
    """What an update does next. useless: replicas that answer nobody yet and never should. drain: how many old ones. start: how many new ones."""

    useless: tuple[ReplicaRecord, ...] = ()
    drain: int = 0
    start: int = 0


#: What a replica is made of; the rest of a specification is about how many there are.
_MADE_OF = (
    *("argv", "working_directory", "environment", "python", "gpus_per_replica"),
    *("queue", "priority", "preemptible"),
)


def updated(service: ServiceRecord, spec: ServiceSpec) -> ServiceRecord:
    """The service with another specification. Its replicas are outdated when they would be made otherwise now."""
    same = all(getattr(spec, field) == getattr(service.spec, field) for field in _MADE_OF)
    return replace(service, spec=spec, outdated_number=service.outdated_number if same else service.last_number)


def outdated(service: ServiceRecord, replicas: Sequence[ReplicaRecord]) -> list[ReplicaRecord]:
    """Those that count and run what the specification said before."""
    return [one for one in replicas if one.counts and one.number <= service.outdated_number]


def lasts(service: ServiceRecord, replicas: Sequence[ReplicaRecord]) -> bool:
    """Whether something is left of what ran before, be it that it drains."""
    return any(not one.ended and one.number <= service.outdated_number for one in replicas)


def step(service: ServiceRecord, replicas: Sequence[ReplicaRecord], desired: int, world: World) -> Step:
    """The next step of an update that lasts. replicas: all of it that are stored, as they are now.

    With room for one more, a new replica answers before an old one drains, so that never fewer than desired do. Where the budget forbids one
    more, or no GPU came for it within `SURGE_PATIENCE_S`, an old one drains first, and one fewer answers meanwhile; requests wait in the router
    where it was the only one. None drains for a replica of another service that waits before the new one: it would take that GPU, and nobody give it
    back. When new replicas do not come to answer, nothing more is drained: the old ones serve on.
    """
    old = outdated(service, replicas)
    answers = [one for one in old if one.state is ReplicaState.READY]
    useless = tuple(one for one in old if one.state is not ReplicaState.READY)
    fresh = [one for one in replicas if one.counts and one.number > service.outdated_number]
    coming = [one for one in fresh if one.state is not ReplicaState.READY]
    spare = len(answers) + len(fresh) - len(coming) - desired
    # What drains has its GPUs still.
    most = _most(service.spec)
    surge, room = desired < most, most - sum(not one.ended for one in replicas)
    start = int(max(0, min(desired - len(fresh), desired + surge - len(answers) - len(fresh), room)))
    idle = not surge and not coming and not start and len(fresh) < desired
    drains = any(one.state is ReplicaState.DRAINING for one in replicas)
    if (idle or given_up(fresh, world)) and not drains and not ahead(service, fresh, world):
        spare += 1
    return Step(useless, min(max(spare, 0), len(answers)), start)


def _most(spec: ServiceSpec) -> float:
    """Replicas that the budget holds while an update lasts, which may be more than the maximum."""
    return math.inf if spec.gpu_budget is None else spec.gpu_budget // spec.gpus_per_replica


def given_up(fresh: Sequence[ReplicaRecord], world: World) -> bool:
    """Whether all new replicas that do not answer wait for what an old one could give, the oldest for too long."""
    coming = [one for one in fresh if one.counts and one.state is not ReplicaState.READY]
    if not coming or any(one.state is not ReplicaState.REQUESTED for one in coming):
        return False
    views = [(world.jobs or {}).get(one.job) for one in coming]
    if not all(view is not None and view.cause in FOR_GPUS for view in views):
        return False
    return world.now_unix_ns - min(one.create_time_unix_ns for one in coming) >= SURGE_PATIENCE_S * 1e9


def ahead(service: ServiceRecord, fresh: Sequence[ReplicaRecord], world: World) -> str:
    """The replica of another service to which a GPU that this one's update gives back would go first; empty when there is none.

    Only its own queue has an order that is known here. It is a strict one, so that of updates that wait for each other the first goes on.
    """
    spec, jobs = service.spec, world.jobs or {}
    mine = (jobs[one.job] for one in fresh if one.counts and one.job in jobs)
    # What has no job yet would be the youngest.
    own = -spec.priority, min((one.create_time_unix_ns for one in mine if not one.node), default=world.now_unix_ns)
    others = (
        (-view.priority, view.create_time_unix_ns, view.replica)
        for view in jobs.values()
        if view.end is None
        and not view.node
        and view.cause in FOR_GPUS
        and view.queue == spec.queue
        and not view.replica.startswith(f"{service.name}/")
    )
    first = min(others, default=None)
    return first[2] if first is not None and first[:2] < own else ""
