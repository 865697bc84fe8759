"""What replicas wait for that nobody gives by itself: quotas, drains and updates in each other's way, named with the remedy. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from switchgear.autoscaler import update
from switchgear.autoscaler.model import JobView, ReplicaRecord, ReplicaState, ServiceRecord, World

#: What is over sooner is no standoff: a pass of the scheduler, a GPU that gets free.
PATIENCE_S = 15.0
#: The scheduler plans at least every 10 s while jobs wait, and tells 100 of them why in each pass.
UNSEEN_S = 60.0


class Kind(StrEnum):
    """The names are those of `switchgear.v1.Standoff.Kind`."""

    SURGE = "SURGE"
    SURGES = "SURGES"
    OWN_DRAIN = "OWN_DRAIN"
    QUOTA = "QUOTA"
    BUDGET = "BUDGET"
    IMPOSSIBLE = "IMPOSSIBLE"
    NODES_CLOSED = "NODES_CLOSED"
    ROOM = "ROOM"
    UNSEEN = "UNSEEN"


@dataclass(frozen=True, slots=True)
class Standoff:
    """text: who waits for whom. remedy: what ends it. action: what the autoscaler does about it by itself; empty: nothing.

    None of them has a figure that changes by time alone, so that it is the same in the next pass.
    """

    kind: Kind
    text: str
    remedy: str
    action: str = ""


#: Causes with which GPUs may be free, and not for this replica.
_FOR_ROOM = frozenset(
    {"RESERVED", "TOPOLOGY", "GPU_MODEL", "SELECTOR", "CPU", "MEMORY", "FRAGMENTED", "HELD", "DEPENDENCY", "NOT_YET"}
)


@dataclass(frozen=True, slots=True)
class _Side:
    """A service, and its oldest replica that has waited too long for a node."""

    service: ServiceRecord
    replicas: Sequence[ReplicaRecord]
    waits: ReplicaRecord | None = None
    job: JobView | None = None

    @property
    def id(self) -> str:
        return _last(self.service.name)

    @property
    def cause(self) -> str:
        return self.job.cause if self.job else ""

    @property
    def outdated(self) -> int:
        return len(update.outdated(self.service, self.replicas))

    @property
    def surges(self) -> bool:
        """Its update waits for GPUs that its own old replicas could give."""
        return self.waits is not None and self.outdated > 0 and self.cause in update.FOR_GPUS


def told(found: Sequence[Standoff]) -> str:
    """As one text, with the remedies; empty when there are none."""
    return "; ".join(f"{one.text}; remedy: {one.remedy}{f'; {one.action}' if one.action else ''}" for one in found)


def standoffs(
    services: Sequence[ServiceRecord], replicas: Mapping[str, Sequence[ReplicaRecord]], world: World
) -> dict[str, tuple[Standoff, ...]]:
    """Those of each service that has any, by its name. replicas: all that are stored, by service."""
    sides = {
        one.name: _side(one, replicas.get(one.name, ()), world.jobs or {}, world.now_unix_ns)
        for one in services
        if not one.deleting
    }
    cycles = _cycles(sides)
    found = {}
    for name, side in sides.items():
        mine = tuple(one for one in (_budget(side), _stuck(side, cycles.get(name, ()), sides, world)) if one)
        if mine:
            found[name] = mine
    return found


def _side(
    service: ServiceRecord, replicas: Sequence[ReplicaRecord], jobs: Mapping[str, JobView], now_unix_ns: int
) -> _Side:
    waiting = (
        one
        for one in replicas
        if one.state is ReplicaState.REQUESTED
        and now_unix_ns - one.create_time_unix_ns >= PATIENCE_S * 1e9
        and (job := jobs.get(one.job)) is not None
        and job.end is None
    )
    oldest = min(waiting, key=lambda one: one.number, default=None)
    return _Side(service, replicas, oldest, jobs[oldest.job] if oldest else None)


def _cycles(sides: Mapping[str, _Side]) -> dict[str, tuple[str, ...]]:
    """For each update that waits: the other updates that it waits for and that wait for it, on whatever way."""
    edges = {
        name: {
            other.service.name
            for other in sides.values()
            if other is not side and other.surges and (side.cause != "QUOTA" or _share_quota(side, other))
        }
        for name, side in sides.items()
        if side.surges
    }
    reach = {name: _reached(name, edges) for name in edges}
    return {
        name: tuple(sorted(other for other in seen if other != name and name in reach[other]))
        for name, seen in reach.items()
    }


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = edges[todo.pop()] - seen
        seen |= new
        todo.extend(new)
    return seen


def _share_quota(one: _Side, other: _Side) -> bool:
    return one.service.spec.queue == other.service.spec.queue


def _budget(side: _Side) -> Standoff | None:
    spec = side.service.spec
    needs = spec.min_replicas * spec.gpus_per_replica
    if spec.gpu_budget is None or needs <= spec.gpu_budget:
        return None
    return Standoff(
        Kind.BUDGET,
        f"at least {spec.min_replicas} replicas need {_gpus(needs)}, and its budget is {_gpus(spec.gpu_budget)}",
        f"raise the budget to {needs}, or the least number to {spec.gpu_budget // spec.gpus_per_replica} or fewer with "
        f"`switchgear services scale {side.id} --min N`",
        f"keeps {spec.most} replicas, as many as the budget holds",
    )


def _stuck(side: _Side, cycle: Sequence[str], sides: Mapping[str, _Side], world: World) -> Standoff | None:
    if side.waits is None or side.job is None:
        return None
    replica, job, cause = f"replica {side.waits.number}", side.waits.job, side.cause
    why = side.job.message or cause
    if side.surges:
        first = update.ahead(
            side.service, [one for one in side.replicas if one.number > side.service.outdated_number], world
        )
        return _surge(side, replica, [sides[name].id for name in cycle], why, first)
    drains = [one for one in side.replicas if one.state is ReplicaState.DRAINING]
    if drains and cause in update.FOR_GPUS:
        names = ", ".join(str(one.number) for one in drains)
        return Standoff(
            Kind.OWN_DRAIN,
            f"{replica} waits for GPUs of the same service that are still in use, since requests are finished in replica {names}: {why}",
            f"it ends by itself within the drain timeout of {side.service.spec.drain_timeout_s:g} s",
        )
    if cause == "QUOTA":
        return Standoff(
            Kind.QUOTA, f"{replica} waits for quota: {why}{_holders(side, sides, world)}", _quota_remedy(side)
        )
    if cause == "IMPOSSIBLE":
        remedy = f"`switchgear explain {job}` says what would; then update the service"
        return Standoff(Kind.IMPOSSIBLE, f"{replica} can be held by no node, not even an empty one: {why}", remedy)
    if cause == "NODES_CLOSED":
        return Standoff(
            Kind.NODES_CLOSED,
            f"{replica} waits for nodes that are closed: {why}",
            "uncordon one with `switchgear nodes uncordon NODE`, or wait until it is mended",
        )
    if cause in _FOR_ROOM:
        remedy = f"`switchgear explain {job}` names the changes that would start it"
        return Standoff(Kind.ROOM, f"{replica} waits although GPUs may be free: {why}", remedy)
    if not cause and world.now_unix_ns - side.waits.create_time_unix_ns >= UNSEEN_S * 1e9:
        return Standoff(
            Kind.UNSEEN,
            f"{replica} waits, and the scheduler does not say for what",
            "see whether the scheduler runs and plans: `switchgear doctor`",
        )
    return None


def _surge(side: _Side, replica: str, others: Sequence[str], why: str, first: str) -> Standoff:
    action = f"gives up the extra replica after {update.SURGE_PATIENCE_S:g} s: an old one drains first, and the next each in its turn"
    if first:
        action = f"keeps the old ones while {first} waits before it: what they gave back would go there"
    if others:
        names = " and ".join(others)
        return Standoff(
            Kind.SURGES,
            f"the updates of {side.id} and {names} wait for GPUs that their old replicas have, and these for the new ones: {why}",
            f"update one after the other, or make room for {_gpus(side.service.spec.gpus_per_replica)} more",
            action,
        )
    return Standoff(
        Kind.SURGE,
        f"{replica} of the update waits for a GPU, and what is to be replaced ({side.outdated} left) waits until it answers: {why}",
        f"make room for {_gpus(side.service.spec.gpus_per_replica)} more while the update lasts",
        action,
    )


def _holders(side: _Side, sides: Mapping[str, _Side], world: World) -> str:
    """Which services of the same queue have GPUs."""
    jobs = world.jobs or {}
    held = {
        other.id: sum(jobs[one.job].gpus for one in other.replicas if not one.ended and one.job in jobs)
        for other in sides.values()
        if _share_quota(side, other)
    }
    told = ", ".join(f"{name} has {gpus}" for name, gpus in sorted(held.items(), key=lambda one: -one[1])[:3] if gpus)
    return f" (of its services {told})" if told else ""


def _quota_remedy(side: _Side) -> str:
    queue = _last(side.service.spec.queue)
    if not queue:
        return "give the service a queue of its own, or let queues lend what they keep"
    return f"raise the limit with `switchgear queues set {queue} --limit N`, or lower the maximum of a service in that queue"


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"
