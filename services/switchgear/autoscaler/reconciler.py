"""The autoscaler's loop: observe, decide, write down, then tell routers and replicas and ask the scheduler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from switchgear.autoscaler import replicas as life
from switchgear.autoscaler.demand import Meter
from switchgear.autoscaler.jobs import ReplicaJobs
from switchgear.autoscaler.metrics import AutoscalerMetrics
from switchgear.autoscaler.model import ReplicaRecord, ServiceRecord, World
from switchgear.autoscaler.plan import POLICY, Memory, Pass, judge
from switchgear.autoscaler.repository import Repository, Snapshot, Transaction
from switchgear.autoscaler.serving import ServingServicer
from switchgear.autoscaler.translate import create_job
from switchgear.core.modes import Mode
from switchgear.v1.job_service_pb2 import CreateJobRequest

log = logging.getLogger(__name__)

RETRY_DELAY_S = 1.0
#: Routers connect again within this after a start, their back-off included; until then those that are missing may still send
#: requests to any replica.
ROUTER_HEARING_S = 20.0


class Modes(Protocol):
    """Where the mode of a policy is read."""

    async def of(self, policy: str) -> Mode:
        """The mode in force now; cheap enough to ask before each decision."""


class AlwaysAct:
    """Modes where nobody sets any."""

    async def of(self, policy: str) -> Mode:  # noqa: ARG002
        return Mode.ACT


class Reconciler:
    """Makes what is stored follow what is seen and decided, and everybody else follow what is stored.

    wake: set by whoever changes something, so that the next pass comes at once.
    interval_s: the longest time between two passes: demand and delays come by time alone.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        modes: Modes,
        meter: Meter,
        jobs: ReplicaJobs,
        serving: ServingServicer,
        metrics: AutoscalerMetrics,
        wake: asyncio.Event,
        interval_s: float,
    ) -> None:
        self._repository, self._modes, self._meter = repository, modes, meter
        self._jobs, self._serving, self._metrics = jobs, serving, metrics
        self._wake, self._interval_s = wake, interval_s
        self._memories: dict[str, Memory] = {}
        self._snapshot: Snapshot | None = None
        self._start_s = 0.0

    async def run(self) -> None:
        """Runs until cancelled; a pass that fails is logged and tried again."""
        self._memories, self._snapshot = {}, None
        self._start_s = self._repository.clock.monotonic_s()
        while True:
            self._wake.clear()
            try:
                await self.reconcile()
            except Exception:
                log.exception("a pass of the autoscaler failed; trying again")
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake-up.
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> None:
        """One pass."""
        mode = await self._modes.of(POLICY)
        # Seen before what is stored is read: a job that is seen belongs to a replica that was stored before.
        world, now_s = self._world(), self._repository.clock.monotonic_s()
        snapshot = await self._repository.snapshot(self._snapshot)
        passes = self._judge(snapshot, world, now_s, mode)
        if _changes(snapshot, passes):
            # Decided anew on what nobody else can change meanwhile: a person may have changed the bounds just now.
            async with self._repository.write() as transaction:
                snapshot = await transaction.snapshot()
                passes = self._judge(snapshot, world, now_s, mode)
                await _write(transaction, snapshot, passes)
            _tell(snapshot, passes)
            snapshot = await self._repository.snapshot()
        self._snapshot = snapshot
        for name, one in passes.items():
            self._metrics.decided(name, one.before, one.memory.replicas, mode)
        self._memories = {name: one.memory for name, one in passes.items()}
        self._follow(snapshot, world, now_s)

    def _world(self) -> World:
        clock = self._repository.clock
        return World(
            now_unix_ns=clock.unix_ns(),
            jobs=self._jobs.jobs,
            refusals=self._jobs.refusals,
            creating=self._jobs.creating,
            loads=self._meter.loads(),
            routers=self._meter.routers(),
            routers_heard=(
                clock.monotonic_s() - self._start_s >= ROUTER_HEARING_S and not self._meter.router_missing()
            ),
        )

    def _judge(self, snapshot: Snapshot, world: World, now_s: float, mode: Mode) -> dict[str, Pass]:
        replicas = snapshot.by_service()
        return {
            service.name: judge(
                service,
                replicas[service.name],
                world,
                demand=self._meter.demand(service.name, now_s),
                now_s=now_s,
                mode=mode,
                memory=self._memories.get(service.name),
            )
            for service in snapshot.services
        }

    def _follow(self, snapshot: Snapshot, world: World, now_s: float) -> None:
        """Tells everybody what is stored. All of it may be told again."""
        self._serving.show(snapshot)
        replicas, cancel = snapshot.by_service(), set(life.orphans(snapshot.replicas, world))
        create: dict[str, CreateJobRequest] = {}
        for service in snapshot.services:
            mine = replicas[service.name]
            wanted = life.effects(service, mine, world)
            create |= {replica.name: create_job(service.spec, replica) for replica in wanted.create}
            cancel |= set(wanted.cancel)
            self._metrics.show(service, mine, self._meter.demand(service.name, now_s))
        self._jobs.want(create, sorted(cancel), {replica.job for replica in snapshot.replicas if not replica.ended})
        self._meter.forget(replicas, now_s)
        self._metrics.forget_all_but(replicas)


def _changes(snapshot: Snapshot, passes: Mapping[str, Pass]) -> bool:
    return any(
        _differs(service, passes[service.name]) or _gone(passes[service.name], snapshot)
        for service in snapshot.services
    )


def _differs(service: ServiceRecord, one: Pass) -> bool:
    return bool(one.plan.replicas) or one.plan.service != service


def _gone(one: Pass, snapshot: Snapshot) -> bool:
    """Whether a service that is being deleted has no replica left."""
    if not one.plan.service.deleting:
        return False
    after = {replica.name: replica for replica in (*_of(snapshot, one.plan.service.name), *one.plan.replicas)}
    return all(replica.ended for replica in after.values())


def _of(snapshot: Snapshot, service: str) -> Sequence[ReplicaRecord]:
    return [replica for replica in snapshot.replicas if replica.service == service]


async def _write(transaction: Transaction, snapshot: Snapshot, passes: Mapping[str, Pass]) -> None:
    for service in snapshot.services:
        one = passes[service.name]
        if _gone(one, snapshot):
            await transaction.delete_service(one.plan.service)
        elif _differs(service, one):
            for replica in one.plan.replicas:
                await transaction.put_replica(replica)
            await transaction.put_service(one.plan.service)


def _tell(snapshot: Snapshot, passes: Mapping[str, Pass]) -> None:
    for service in snapshot.services:
        after = passes[service.name].plan
        if after.service.decision != service.decision or after.service.hindrance != service.hindrance:
            log.info(
                "inference service",
                extra={
                    "service": service.name,
                    "desired": after.service.desired,
                    "reason": after.service.decision,
                    "hindrance": after.service.hindrance,
                },
            )
        for replica in after.replicas:
            log.info(
                "replica", extra={"replica": replica.name, "state": replica.state.value, "reason": replica.message}
            )
