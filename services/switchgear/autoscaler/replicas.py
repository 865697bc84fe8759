"""The life of replicas: from what is desired and seen to what they are, and what the scheduler is to be asked for. Pure.

Every record is stored before anything is done about it, and what is to be done follows from the records alone; so whoever stops
in the middle goes on where he was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from switchgear.autoscaler import update
from switchgear.autoscaler.borrowing import borrowed
from switchgear.autoscaler.model import JobEnd, JobView, ReplicaRecord, ReplicaState, ServiceRecord, World
from switchgear.core import names

#: A replica that ends within this after it was READY counts as one that could not start.
STABLE_S = 10.0
#: The second of replicas that end so in a row waits this long for its successor, each next one twice as long, up to the maximum.
BACK_OFF_S = 1.0
BACK_OFF_S_MAX = 60.0
#: Ended replicas that are kept for people, for the back-off and for the time that starts take.
ENDED_MAX = 20
MESSAGE_LENGTH_MAX = 1000
#: Until the scheduler has answered, which takes a moment and is no hindrance.
_ASKED = "is asked of the scheduler"


@dataclass(frozen=True, slots=True)
class Plan:
    """Records as they should be; replicas that are not named stay as they are."""

    service: ServiceRecord
    replicas: tuple[ReplicaRecord, ...]


@dataclass(frozen=True, slots=True)
class Effects:
    """What the scheduler is to be asked for. Every one is idempotent."""

    create: tuple[ReplicaRecord, ...] = ()
    #: Names of jobs.
    cancel: tuple[str, ...] = ()


def reconcile(service: ServiceRecord, replicas: Sequence[ReplicaRecord], world: World, stuck: str = "") -> Plan:
    """Brings the replicas up to date with what is seen, then makes them as many as desired, and replaces those that an update left behind.

    replicas: all of the service that are stored. stuck: the standoff that it is in, told as its hindrance.
    """
    before = {replica.name: replica for replica in replicas}
    now = {name: _seen(replica, world, service) for name, replica in before.items()}
    counting = [replica for replica in now.values() if replica.counts]
    desired = 0 if service.deleting else service.desired
    lent = frozenset(one.replica for one in borrowed(now.values(), world.loans, service.spec.gpus_per_replica))
    if update.lasts(service, list(now.values())):
        old = update.outdated(service, counting)
        step = update.step(service, list(now.values()), desired, world)
        newer = [replica for replica in counting if replica not in old]
        gone = [*step.useless, *_surplus(newer, len(newer) - desired, world, lent)]
        gone += _surplus([one for one in old if one not in step.useless], step.drain, world, lent)
        missing = step.start
    else:
        gone, missing = list(_surplus(counting, len(counting) - desired, world, lent)), desired - len(counting)
    for replica in gone:
        now[replica.name] = _draining(replica, world)
    hindrance = ""
    if missing > 0:
        hindrance = _crash_loop(list(now.values()), world.now_unix_ns)
        for number in range(service.last_number + 1, service.last_number + 1 + (0 if hindrance else missing)):
            fresh = _requested(service, number, world.now_unix_ns)
            now[fresh.name] = fresh
            service = replace(service, last_number=number)
    service = replace(service, hindrance=hindrance or stuck or _waiting(now.values()))
    return Plan(service, tuple(replica for name, replica in now.items() if replica != before.get(name)))


def effects(service: ServiceRecord, replicas: Iterable[ReplicaRecord], world: World) -> Effects:
    """What follows from the records of a service, as they are stored."""
    if world.jobs is None:
        return Effects()  # not knowing a job is not the same as there being none
    jobs, live = world.jobs, [replica for replica in replicas if not replica.ended]
    return Effects(
        tuple(r for r in live if r.state is ReplicaState.REQUESTED and r.job not in jobs),
        tuple(r.job for r in live if _alive(jobs.get(r.job)) and _may_end(r, service, world)),
    )


def orphans(replicas: Iterable[ReplicaRecord], world: World) -> tuple[str, ...]:
    """Jobs of replicas that have ended or that nobody knows: a call that was lost on the way may have arrived late.

    replicas: all that are stored, read after `world` was seen.
    """
    live = {replica.job: replica.name for replica in replicas if not replica.ended}
    return tuple(job for job, view in (world.jobs or {}).items() if view.end is None and live.get(job) != view.replica)


def start_s(replicas: Iterable[ReplicaRecord]) -> float | None:
    """How long the replicas took from the decision to READY, as a median; None when none has been READY."""
    took = [(r.ready_time_unix_ns - r.create_time_unix_ns) / 1e9 for r in replicas if r.ready_time_unix_ns is not None]
    return max(0.0, median(took)) if took else None


def _requested(service: ServiceRecord, number: int, now_unix_ns: int) -> ReplicaRecord:
    return ReplicaRecord(
        service=service.name,
        number=number,
        name=names.replica_name(service.name, number),
        job=f"jobs/{service.name.split('/')[-1]}-r{number}",
        create_time_unix_ns=now_unix_ns,
        message=_ASKED,
    )


def _seen(replica: ReplicaRecord, world: World, service: ServiceRecord) -> ReplicaRecord:
    """The replica after what is seen of its job and of itself."""
    if replica.ended:
        return replica
    job = world.jobs.get(replica.job) if world.jobs is not None else None
    if job is not None and job.replica != replica.name:
        message = f"{replica.job} is not a replica's; the next replica has another name"
        return _ended(replica, ReplicaState.FAILED, message, world)
    if job is not None and job.end is not None:
        return _job_ended(replica, job, job.end, service, world)
    if job is not None and not job.node and replica.ready_time_unix_ns is not None:
        # What it knew is gone; another replica waits for its turn as well, and under its own name.
        return _ended(replica, ReplicaState.STOPPED, "its GPUs were taken for a job of a higher claim", world)
    if job is None and world.jobs is not None and replica.node:
        return _ended(replica, ReplicaState.FAILED, f"{replica.job} is gone from the scheduler", world)
    if replica.state is ReplicaState.DRAINING:
        gone = job is None and world.jobs is not None and replica.name not in world.creating
        return (
            _ended(replica, ReplicaState.STOPPED, "was not needed any more before it began", world) if gone else replica
        )
    refusal = world.refusals.get(replica.name)
    if refusal and job is None:
        if refusal.permanent:
            return _ended(replica, ReplicaState.FAILED, refusal.message, world)
        return replace(replica, message=refusal.message[:MESSAGE_LENGTH_MAX])
    if job is not None:
        replica = _placed(replica, job)
    return _reported(replica, world)


def _placed(replica: ReplicaRecord, job: JobView) -> ReplicaRecord:
    if replica.state is ReplicaState.REQUESTED and job.node:
        return replace(replica, state=ReplicaState.STARTING, node=job.node, message=f"starts on {job.node}")
    if replica.state is ReplicaState.REQUESTED:
        return replace(replica, message=job.message[:MESSAGE_LENGTH_MAX])
    return replace(replica, node=job.node or replica.node)


def _reported(replica: ReplicaRecord, world: World) -> ReplicaRecord:
    load = world.loads.get(replica.name)
    if load is None:
        # Its stream may be back in a moment, and routers know where it is; when it has ended, so has its job.
        return replica
    if load.ready:
        return replace(
            replica,
            state=ReplicaState.READY,
            address=load.address,
            message="answers requests",
            ready_time_unix_ns=replica.ready_time_unix_ns or world.now_unix_ns,
        )
    if replica.state is ReplicaState.READY:
        return replace(replica, state=ReplicaState.STARTING, message="says that it does not answer requests any more")
    return replica


def _job_ended(
    replica: ReplicaRecord, job: JobView, end: JobEnd, service: ServiceRecord, world: World
) -> ReplicaRecord:
    if end is JobEnd.FAILED:
        return _ended(replica, ReplicaState.FAILED, job.message or "its job has failed", world)
    if replica.drain_time_unix_ns is None:
        how = "was cancelled by somebody" if end is JobEnd.CANCELLED else "ended by itself"
        return _ended(replica, ReplicaState.STOPPED, f"its job {how}", world)
    if _drain_is_over(replica, service, world):
        late = f"was stopped although requests were in it {service.spec.drain_timeout_s:g} s after it was told to drain"
        return _ended(replica, ReplicaState.STOPPED, late, world)
    return _ended(replica, ReplicaState.STOPPED, "had finished its requests", world)


def _ended(replica: ReplicaRecord, state: ReplicaState, message: str, world: World) -> ReplicaRecord:
    return replace(replica, state=state, message=message[:MESSAGE_LENGTH_MAX], end_time_unix_ns=world.now_unix_ns)


def _draining(replica: ReplicaRecord, world: World) -> ReplicaRecord:
    return replace(
        replica,
        state=ReplicaState.DRAINING,
        drain_time_unix_ns=world.now_unix_ns,
        message="finishes its requests" if replica.ready_time_unix_ns is not None else "is not needed any more",
    )


def _surplus(
    counting: Sequence[ReplicaRecord], count: int, world: World, lent: frozenset[str]
) -> Sequence[ReplicaRecord]:
    """Which replicas go: those that serve least.

    One that is not READY serves nobody. Among those that are, one whose node is to be left goes first; then one on GPUs that a job gave up
    for it (lent: such replicas), since no other GPU brings the lender back as surely; then the one with the fewest requests, which
    is done soonest and has the least to lose if something goes wrong meanwhile; the youngest among equals, since the oldest has proven itself.
    """
    early = (ReplicaState.REQUESTED, ReplicaState.STARTING, ReplicaState.READY)

    def requests(replica: ReplicaRecord) -> float:
        routed = sum(router.in_flight(replica.service, replica.name) for router in world.routers)
        load = world.loads.get(replica.name)
        return max(routed, load.running_requests + load.waiting_requests) if load else float("inf")

    def rank(replica: ReplicaRecord) -> tuple[int, bool, bool, float, int]:
        well, kept = replica.node not in world.sick, replica.name not in lent
        return (early.index(replica.state), well, kept, requests(replica), -replica.number)

    return sorted(counting, key=rank)[: max(count, 0)]


def _alive(job: JobView | None) -> bool:
    return job is not None and job.end is None


def _may_end(replica: ReplicaRecord, service: ServiceRecord, world: World) -> bool:
    """Whether nothing is lost when the job of a replica ends now, or it has had its time."""
    if replica.state is not ReplicaState.DRAINING:
        return False
    if replica.ready_time_unix_ns is None or _drain_is_over(replica, service, world):
        return True
    load = world.loads.get(replica.name)
    if load is None or load.running_requests or load.waiting_requests or not world.routers_heard:
        return False
    return all(
        router.table_version >= replica.drain_revision and not router.in_flight(replica.service, replica.name)
        for router in world.routers
    )


def _drain_is_over(replica: ReplicaRecord, service: ServiceRecord, world: World) -> bool:
    since = replica.drain_time_unix_ns
    return since is not None and world.now_unix_ns - since >= service.spec.drain_timeout_s * 1e9


def _crash_loop(replicas: Sequence[ReplicaRecord], now_unix_ns: int) -> str:
    """Why no new replica is asked for yet; empty when one may be."""
    failed: list[ReplicaRecord] = []
    for replica in sorted(replicas, key=lambda replica: -replica.number):
        if replica.drain_time_unix_ns is not None:
            continue
        if not replica.ended or not _failed_early(replica):
            if replica.ready_time_unix_ns is not None:
                break
            continue
        failed.append(replica)
    if len(failed) < 2:  # one may have had bad luck with its node
        return ""
    newest = max(failed, key=lambda replica: replica.end_time_unix_ns or 0)
    delay_s = min(BACK_OFF_S * 2 ** (len(failed) - 2), BACK_OFF_S_MAX)
    since_s = (now_unix_ns - (newest.end_time_unix_ns or 0)) / 1e9
    if not 0 <= since_s < delay_s:  # below 0 the clock was set back: nobody knows how long it has been
        return ""
    return (
        f"{len(failed)} replicas in a row ended before they served for {STABLE_S:g} s, so the next one waits {delay_s:g} s; "
        f"{newest.name}: {newest.message}"
    )


def _failed_early(replica: ReplicaRecord) -> bool:
    if replica.ready_time_unix_ns is None:
        return True
    return (replica.end_time_unix_ns or 0) - replica.ready_time_unix_ns < STABLE_S * 1e9


def _waiting(replicas: Iterable[ReplicaRecord]) -> str:
    """What the oldest replica that has no node waits for."""
    requested = [r for r in replicas if r.state is ReplicaState.REQUESTED and r.message != _ASKED]
    if not requested:
        return ""
    oldest = min(requested, key=lambda replica: replica.number)
    return f"{oldest.name}: {oldest.message}"
