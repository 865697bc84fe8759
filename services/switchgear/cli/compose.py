"""Puts a process of the control plane together: `up` is all services in one, `serve` is one of them.

What every such process has (an interceptor, a port, a loop) is added here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.collector import main as collector
from switchgear.core.clock import Clock, SystemClock
from switchgear.core.modes import Mode
from switchgear.core.rpc import Server, split_address
from switchgear.core.service import Endpoints, Service
from switchgear.gateway import front_door
from switchgear.gateway import main as gateway
from switchgear.recovery import main as recovery
from switchgear.scheduler import main as scheduler
from switchgear.store.database import Database
from switchgear.store.policies import PolicyModes

#: Names of all services; each is an endpoint of its own when they run apart.
ENDPOINTS = ("collector", "scheduler", "recovery", "autoscaler", "gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """services: which of SERVICES run in this process; with `gateway` among them it also serves REST at `http`.

    grpc, http: HOST:PORT to listen on, port 0 takes a free one. database_url: migrated at the start.
    elsewhere: gRPC addresses of the services of other processes. policies: modes of the configuration.
    """

    services: tuple[str, ...]
    state_dir: Path
    database_url: str
    grpc: str
    http: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, Mode] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the services of a process share."""

    settings: PlaneSettings
    database: Database
    clock: Clock
    modes: PolicyModes
    #: Metrics of this process.
    registry: CollectorRegistry


@dataclass(frozen=True, slots=True)
class Plane:
    """A running process. http: HOST:PORT of REST, empty without a gateway. tasks: its end is theirs."""

    endpoints: Endpoints
    http: str
    tasks: asyncio.TaskGroup


#: How each service is built, by the name of its endpoint.
SERVICES: Mapping[str, Callable[[Parts], Service]] = {
    "collector": lambda parts: collector.build(parts.database, parts.clock, registry=parts.registry),
    "scheduler": lambda parts: scheduler.build(
        parts.database, parts.clock, scheduler.SchedulerSettings(state_dir=parts.settings.state_dir)
    ),
    "recovery": lambda parts: recovery.build(parts.database, parts.clock),
    "gateway": lambda parts: front_door.build(parts.database, parts.clock, parts.modes),
}


#: What sees each gRPC call before its handler, outermost first.
INTERCEPTORS: Sequence[Callable[[Parts], grpc.aio.ServerInterceptor]] = ()


@asynccontextmanager
async def running(settings: PlaneSettings) -> AsyncIterator[Plane]:
    """Serves until the block ends; the block is cancelled when a service fails.

    Raises Unavailable when the database cannot be used, FailedPrecondition when its state is of a newer version, a port is in
    use or an address is not loopback.
    """
    clock = SystemClock()
    database = Database(settings.database_url)
    modes = PolicyModes(database, settings.policies, clock=clock)
    parts = Parts(settings, database, clock, modes, CollectorRegistry())
    server = Server([interceptor(parts) for interceptor in INTERCEPTORS])
    try:
        await database.migrate()
        services = [SERVICES[name](parts) for name in settings.services]
        for service in services:
            service.register(server.grpc)
        address = await server.start(settings.grpc, [name for service in services for name in service.service_names])
        endpoints = _endpoints(settings, address)
        async with _rest(settings, endpoints) as http, asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(service.run(endpoints)) for service in services]
            yield Plane(endpoints, http, tasks)
            for loop in loops:
                loop.cancel()
    finally:
        await server.stop()
        await database.close()


def _endpoints(settings: PlaneSettings, here: str) -> Endpoints:
    """Where the services are: here, or where the settings say; one that is nowhere is never called."""
    collector_at, scheduler_at, recovery_at, autoscaler_at, gateway_at = (
        here if name in settings.services else settings.elsewhere.get(name, "") for name in ENDPOINTS
    )
    return Endpoints(collector_at, scheduler_at, recovery_at, autoscaler_at, gateway_at)


@asynccontextmanager
async def _rest(settings: PlaneSettings, endpoints: Endpoints) -> AsyncIterator[str]:
    if "gateway" not in settings.services:
        yield ""
        return
    host, port = split_address(settings.http)
    async with gateway.serve(gateway.build_app(endpoints), host, port) as http:
        yield http
