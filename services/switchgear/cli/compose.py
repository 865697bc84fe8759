"""Puts a process of the control plane together: `up` is all services in one, `serve` is one of them.

What every such process has (an interceptor, a port, a loop) is added here and nowhere else.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry, Gauge

from switchgear.access.guard import Guard
from switchgear.access.guard import guard as make_guard
from switchgear.access.pki import Pki
from switchgear.autoscaler import main as autoscaler
from switchgear.collector import main as collector
from switchgear.collector.config import CollectorConfig
from switchgear.core.clock import Clock, SystemClock
from switchgear.core.metrics import MetricsServer, new_registry
from switchgear.core.modes import Mode
from switchgear.core.observation import Observation
from switchgear.core.process import allow_many_open_files
from switchgear.core.rpc import Server, dialable, is_loopback, require_free_port, split_address
from switchgear.core.service import Endpoints, Service
from switchgear.gateway import front_door
from switchgear.gateway import main as gateway
from switchgear.planner.model import Policy
from switchgear.recovery import main as recovery
from switchgear.recovery.values import Timing
from switchgear.scheduler import main as scheduler
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.store.database import Database
from switchgear.store.holder import Candidate
from switchgear.store.installation import installation_name
from switchgear.store.policies import PolicyModes

#: Where `/metrics` is when nobody says: a port that is free.
DEFAULT_METRICS = "127.0.0.1:0"
#: Names of all services; each is an endpoint of its own when they run apart.
ENDPOINTS = ("collector", "scheduler", "recovery", "autoscaler", "gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """services: which of SERVICES run in this process; with `gateway` among them it also serves REST at `http`.

    grpc, http, machines: HOST:PORT to listen on, port 0 takes a free one. With TLS the gateway takes people with tokens at `grpc`
    and certificates at `machines`; the other services take certificates only.
    elsewhere: gRPC addresses of the services of other processes. policies: modes of the configuration.
    metrics: HOST:PORT of `/metrics`; beyond loopback it takes clients with a certificate of ours only.
    timing: the leases of jobs that begin from now on. planner: what operators choose of it. collector: what its configuration file says.
    slurm: the Slurm whose nodes are used; None: agents start the launchers.
    """

    services: tuple[str, ...]
    state_dir: Path
    database_url: str
    grpc: str
    http: str = ""
    machines: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, Mode] = field(default_factory=dict)
    metrics: str = DEFAULT_METRICS
    timing: Timing = field(default_factory=Timing)
    planner: Policy = field(default_factory=Policy)
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    slurm: SlurmSettings | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the services of a process share."""

    settings: PlaneSettings
    database: Database
    clock: Clock
    modes: PolicyModes
    #: Metrics of this process.
    registry: CollectorRegistry
    guard: Guard


@dataclass(frozen=True, slots=True)
class Plane:
    """A running process. grpc, http: HOST:PORT for people; http is empty without a gateway. metrics: of `/metrics`."""

    parts: Parts
    endpoints: Endpoints
    grpc: str
    http: str
    metrics: str


#: How each service is built, by the name of its endpoint.
SERVICES: Mapping[str, Callable[[Parts], Service]] = {
    "collector": lambda parts: collector.build(
        parts.database, parts.clock, registry=parts.registry, config=parts.settings.collector
    ),
    "scheduler": lambda parts: scheduler.build(
        parts.database,
        parts.clock,
        scheduler.SchedulerSettings(
            state_dir=parts.settings.state_dir, policy=parts.settings.planner, slurm=parts.settings.slurm
        ),
        registry=parts.registry,
        modes=parts.modes,
    ),
    "recovery": lambda parts: recovery.build(
        parts.database, parts.clock, registry=parts.registry, modes=parts.modes, timing=parts.settings.timing
    ),
    "autoscaler": lambda parts: autoscaler.build(
        parts.database,
        parts.clock,
        modes=parts.modes,
        registry=parts.registry,
        log_dir=parts.settings.state_dir / "autoscaler",
    ),
    "gateway": lambda parts: front_door.build(
        parts.database,
        parts.clock,
        parts.modes,
        [name for name in ENDPOINTS if name not in parts.settings.services],
        registry=parts.registry,
    ),
}


#: Services of which any number may act at once: a gateway decides nothing, and what it writes is one transaction each.
_MANY_ACT = frozenset({"gateway"})

#: What sees each gRPC call, and the code that the client gets.
OUTERMOST: Sequence[Callable[[Parts], grpc.aio.ServerInterceptor]] = (lambda parts: Observation(parts.registry),)
#: What sees each gRPC call before its handler, outermost first.
INTERCEPTORS: Sequence[Callable[[Parts], grpc.aio.ServerInterceptor]] = (lambda parts: parts.guard.interceptor,)


@asynccontextmanager
async def running(settings: PlaneSettings) -> AsyncIterator[Plane]:
    """Serves until the block ends; the block is cancelled when a service fails or a lease is lost.

    On PostgreSQL it begins once this process holds the lease of each of its services.
    Raises Unavailable when the database cannot be used, FailedPrecondition when its state is of a newer version, a port is in
    use or an address is beyond loopback without TLS.
    """
    allow_many_open_files()
    clock = SystemClock()
    database = Database(settings.database_url)
    try:
        await database.migrate()
        if settings.slurm and not settings.slurm.cluster:
            async with database.read() as session:
                slurm = replace(settings.slurm, cluster=await installation_name(session))
            settings = replace(settings, slurm=slurm)
        registry = new_registry(*settings.services)
        guard = make_guard(database, clock, Pki.find(settings.state_dir / "pki"), registry)
        modes = PolicyModes(database, settings.policies, clock=clock)
        parts = Parts(settings, database, clock, modes, registry, guard)
        async with guard.running():
            # From here on, so that one that stands by is seen to be well.
            with _metrics(parts) as metrics:
                async with _holding_leases(parts), _serving(parts, metrics) as plane:
                    yield plane
    finally:
        await database.close()


def lease_held(registry: CollectorRegistry) -> Gauge:
    """Which of the services of this process act."""
    help_text = "1 while this process acts for the service, 0 while it stands by"
    return Gauge("switchgear_lease_held", help_text, ["service"], registry=registry)


@asynccontextmanager
async def _holding_leases(parts: Parts) -> AsyncIterator[None]:
    settings = parts.settings
    acting = [name for name in settings.services if name not in _MANY_ACT]
    held = lease_held(parts.registry)
    shared = parts.database.is_shared and bool(acting)
    for name in acting:
        held.labels(name).set(0 if shared else 1)
    if not shared:
        yield  # one state directory has one process
        return
    host, port = split_address(settings.grpc)
    require_free_port(host, port)  # else a second start of the same command would take the place of the first
    own = uuid.uuid4().hex if port == 0 else settings.grpc
    names = [_lease(settings, name) for name in acting]
    async with Candidate(parts.database, parts.clock, names, f"{socket.gethostname()}/{own}").holding():
        for name in acting:
            held.labels(name).set(1)
        yield


def _lease(settings: PlaneSettings, service: str) -> str:
    """One for each service, and one for each of several collectors."""
    shard = settings.collector.sharding.own if service == "collector" else ""
    return f"services/{service}@{shard}" if shard else f"services/{service}"


@asynccontextmanager
async def _serving(parts: Parts, metrics: str) -> AsyncIterator[Plane]:
    settings, guard = parts.settings, parts.guard
    server = Server(
        [interceptor(parts) for interceptor in INTERCEPTORS],
        outermost=[*guard.outermost, *(interceptor(parts) for interceptor in OUTERMOST)],
    )
    services = [SERVICES[name](parts) for name in settings.services]
    if guard.service and "gateway" in settings.services:
        services.append(guard.service)
    for service in services:
        service.register(server.grpc)
    try:
        address, machines = await _listen(
            parts, server, [name for service in services for name in service.service_names]
        )
        endpoints = _endpoints(parts, machines)
        async with _rest(parts, endpoints) as http, asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(service.run(endpoints)) for service in services]
            yield Plane(parts, endpoints, address, http, metrics)
            for loop in loops:
                loop.cancel()
    finally:
        await server.stop()


async def _listen(parts: Parts, server: Server, names: Sequence[str]) -> tuple[str, str]:
    """The addresses for people and for our own processes; the same one without TLS, and where no people come."""
    settings, guard = parts.settings, parts.guard
    if guard.machine_credentials is None:
        address = await server.start(settings.grpc, names)
        guard.listening(address)
        return address, address
    if "gateway" in settings.services:
        machines = server.also_listen(settings.machines, guard.machine_credentials)
        address = await server.start(settings.grpc, names, guard.people_credentials)
    else:
        address = machines = await server.start(settings.grpc, names, guard.machine_credentials)
    guard.listening(address, machines, whole=len(settings.services) == len(ENDPOINTS))
    return dialable(address), dialable(machines)


def _endpoints(parts: Parts, here: str) -> Endpoints:
    """Where the services are: here, or where the settings say."""
    settings = parts.settings
    collector_at, scheduler_at, recovery_at, autoscaler_at, gateway_at = (
        here if name in settings.services else settings.elsewhere[name] for name in ENDPOINTS
    )
    return Endpoints(collector_at, scheduler_at, recovery_at, autoscaler_at, gateway_at, parts.guard.tls_files)


@contextmanager
def _metrics(parts: Parts) -> Iterator[str]:
    address = parts.settings.metrics
    tls = None if is_loopback(split_address(address)[0]) else parts.guard.tls_files
    server = MetricsServer.of(parts.registry, address, tls)
    try:
        yield server.address
    finally:
        server.close()


@asynccontextmanager
async def _rest(parts: Parts, endpoints: Endpoints) -> AsyncIterator[str]:
    settings, guard = parts.settings, parts.guard
    if "gateway" not in settings.services:
        yield ""
        return
    host, port = split_address(settings.http)
    async with gateway.serve(
        gateway.build_app(endpoints, guard.admit_http, registry=parts.registry), host, port, guard.http_ssl
    ) as http:
        yield http
