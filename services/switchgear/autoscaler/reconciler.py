"""The autoscaler's loop: observe, decide, write down, then tell routers and replicas and ask the scheduler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from switchgear.autoscaler import replicas as life
from switchgear.autoscaler import store
from switchgear.autoscaler.jobs import ReplicaJobs
from switchgear.autoscaler.journal import Journal
from switchgear.autoscaler.meter import Meter
from switchgear.autoscaler.metrics import AutoscalerMetrics
from switchgear.autoscaler.model import ReplicaRecord, ServiceRecord, World
from switchgear.autoscaler.observe import NodeView, observe, starts
from switchgear.autoscaler.plan import POLICY, Verdict, judge
from switchgear.autoscaler.replicas import Plan
from switchgear.autoscaler.repository import Repository, Snapshot, Transaction
from switchgear.autoscaler.scaling import Decided, Memory, Scaling
from switchgear.autoscaler.serving import ServingServicer
from switchgear.autoscaler.sharing import Sharing, sharing
from switchgear.autoscaler.standoff import Standoff, standoffs, told
from switchgear.autoscaler.translate import create_job
from switchgear.core.modes import Mode
from switchgear.v1.job_service_pb2 import CreateJobRequest

log = logging.getLogger(__name__)

RETRY_DELAY_S = 1.0
#: Held requests without any replica are a reason to decide at once, but not more often than this.
URGENT_S = 0.2
#: What a policy has learned is stored that often; so much is learned again after a crash.
MEMORY_S = 30.0
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
        nodes: Callable[[], Mapping[str, NodeView]],
        journal: Journal,
        metrics: AutoscalerMetrics,
        wake: asyncio.Event,
        interval_s: float,
    ) -> None:
        self._repository, self._modes, self._meter = repository, modes, meter
        self._jobs, self._serving, self._metrics = jobs, serving, metrics
        self._nodes, self._journal = nodes, journal
        self._wake, self._interval_s = wake, interval_s
        self._scalings: dict[str, Scaling] = {}
        self._memories: dict[str, Memory] = {}
        self._saved_s = 0.0
        self._standoffs: Mapping[str, tuple[Standoff, ...]] = {}
        self._sharing: Mapping[str, Sharing] = {}
        self._snapshot: Snapshot | None = None
        self._start_s = 0.0

    async def run(self) -> None:
        """Runs until cancelled; a pass that fails is logged and tried again."""
        self._scalings, self._snapshot = {}, None
        self._start_s = self._saved_s = self._repository.clock.monotonic_s()
        self._journal.begin_anew()
        async with self._repository.database.read() as session:
            self._memories = await store.all_memories(session)
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

    def scaling(self, service: str) -> Scaling | None:
        """The policies of a service; None: nothing has been decided yet."""
        return self._scalings.get(service)

    def sharing(self, service: str) -> Sharing:
        """What it has of others and waits for, as the last pass saw it."""
        return self._sharing.get(service, Sharing())

    async def reconcile(self) -> None:
        """One pass."""
        mode = await self._modes.of(POLICY)
        # Seen before what is stored is read: a job that is seen belongs to a replica that was stored before.
        world, now_s = self._world(), self._repository.clock.monotonic_s()
        snapshot = await self._repository.snapshot(self._snapshot)
        decided = self._decide(snapshot, world, now_s, mode)
        await self._journal.append(decided)
        plans = self._judge(snapshot, world, mode)
        if _changes(snapshot, plans):
            # Judged anew on what nobody else can change meanwhile: a person may have changed the bounds just now.
            async with self._repository.write() as transaction:
                snapshot = await transaction.snapshot()
                plans = self._judge(snapshot, world, mode)
                await _write(transaction, snapshot, plans)
            _tell(snapshot, plans)
            snapshot = await self._repository.snapshot()
        self._snapshot = snapshot
        for name, one in decided.items():
            self._metrics.decided(name, one.record.seen, one.before, self._scalings[name].wanted, mode)
        self._follow(snapshot, world, now_s)
        await self._journal.keep(self._scalings)
        await self._remember(now_s, {service.name for service in snapshot.services})

    def _world(self) -> World:
        clock = self._repository.clock
        return World(
            now_unix_ns=clock.unix_ns(),
            jobs=self._jobs.jobs,
            loans=self._jobs.loans,
            refusals=self._jobs.refusals,
            creating=self._jobs.creating,
            sick=frozenset(name for name, node in self._nodes().items() if node.sick),
            loads=self._meter.loads(),
            routers=self._meter.routers(),
            routers_heard=(
                clock.monotonic_s() - self._start_s >= ROUTER_HEARING_S and not self._meter.router_missing()
            ),
        )

    def _decide(self, snapshot: Snapshot, world: World, now_s: float, mode: Mode) -> dict[str, Decided]:
        """Asks the policies whose time has come; by service."""
        replicas, nodes, unix_s = snapshot.by_service(), self._nodes(), world.now_unix_ns / 1e9
        live = [service for service in snapshot.services if not service.deleting]
        known, self._scalings = self._scalings, {}
        decided: dict[str, Decided] = {}
        for service in live:
            name = service.name
            scaling = known.get(name) or Scaling(name, self._memories.pop(name, None), now_s, unix_s)
            self._scalings[name] = scaling
            scaling.follow(service.spec.shadow_policy, unix_s, service.desired)
            wanting = service.desired == 0 and self._meter.held(name) > 0
            if not scaling.due(now_s, urgent=wanting and scaling.interval_s(now_s) >= URGENT_S):
                continue
            started = starts(replicas[name], scaling.known_starts)
            scaling.known_starts = started.known
            seen = observe(
                service,
                replicas[name],
                self._meter.take(name, now_s),
                interval_s=scaling.interval_s(now_s),
                now_unix_ns=world.now_unix_ns,
                started=started,
                nodes=nodes,
            )
            try:
                decided[name] = scaling.decide(now_s, seen, mode=mode.value, begins=self._journal.begins(name))
            except Exception:
                # One service must not keep the others from theirs; its number stays, and the next pass tries again.
                log.exception("the policy of %s could not decide", name)
        return decided

    def _judge(self, snapshot: Snapshot, world: World, mode: Mode) -> dict[str, Plan]:
        replicas = snapshot.by_service()
        self._standoffs = standoffs(snapshot.services, replicas, world)
        return {
            service.name: judge(
                service,
                replicas[service.name],
                world,
                verdict=self._verdict(service.name, world),
                mode=mode,
                stuck=told(self._standoffs.get(service.name, ())),
            )
            for service in snapshot.services
        }

    def _verdict(self, service: str, world: World) -> Verdict | None:
        scaling = self._scalings.get(service)
        if scaling is None or scaling.decision is None:
            return None
        blind = bool(scaling.seen and scaling.seen.blind)
        return Verdict(scaling.decision, heard=world.routers_heard or not blind)

    async def _remember(self, now_s: float, stored: Collection[str]) -> None:
        """Stores what the policies have learned, now and then. stored: services that there are; one may have gone in this pass."""
        if now_s - self._saved_s < MEMORY_S or not self._scalings:
            return
        self._saved_s, unix_s = now_s, self._repository.clock.unix_ns() / 1e9
        memories = {name: one.memory(now_s, unix_s) for name, one in self._scalings.items() if name in stored}
        async with self._repository.database.write() as session:
            for name, memory in memories.items():
                await store.save_memory(session, name, memory)

    def _follow(self, snapshot: Snapshot, world: World, now_s: float) -> None:
        """Tells everybody what is stored. All of it may be told again."""
        self._serving.show(snapshot)
        replicas, cancel = snapshot.by_service(), set(life.orphans(snapshot.replicas, world))
        create: dict[str, CreateJobRequest] = {}
        self._sharing = {
            one.name: sharing(one, replicas[one.name], world.loans, self._standoffs.get(one.name, ()))
            for one in snapshot.services
        }
        for service in snapshot.services:
            mine = replicas[service.name]
            wanted = life.effects(service, mine, world)
            create |= {replica.name: create_job(service.spec, replica) for replica in wanted.create}
            cancel |= set(wanted.cancel)
            self._metrics.show(service, mine, self._scalings.get(service.name), self._sharing[service.name])
        live = [replica for replica in snapshot.replicas if not replica.ended]
        self._jobs.want(create, sorted(cancel), {replica.job for replica in live})
        self._meter.forget(replicas, (replica.name for replica in live), now_s)
        self._metrics.forget_all_but(replicas)


def _changes(snapshot: Snapshot, plans: Mapping[str, Plan]) -> bool:
    return any(
        _differs(service, plans[service.name]) or _gone(plans[service.name], snapshot) for service in snapshot.services
    )


def _differs(service: ServiceRecord, plan: Plan) -> bool:
    return bool(plan.replicas) or plan.service != service


def _gone(plan: Plan, snapshot: Snapshot) -> bool:
    """Whether a service that is being deleted has no replica left."""
    if not plan.service.deleting:
        return False
    after = {replica.name: replica for replica in (*_of(snapshot, plan.service.name), *plan.replicas)}
    return all(replica.ended for replica in after.values())


def _of(snapshot: Snapshot, service: str) -> Sequence[ReplicaRecord]:
    return [replica for replica in snapshot.replicas if replica.service == service]


async def _write(transaction: Transaction, snapshot: Snapshot, plans: Mapping[str, Plan]) -> None:
    for service in snapshot.services:
        plan = plans[service.name]
        if _gone(plan, snapshot):
            await transaction.delete_service(plan.service)
        elif _differs(service, plan):
            for replica in plan.replicas:
                await transaction.put_replica(replica)
            await transaction.put_service(plan.service)


def _tell(snapshot: Snapshot, plans: Mapping[str, Plan]) -> None:
    for service in snapshot.services:
        after = plans[service.name]
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
