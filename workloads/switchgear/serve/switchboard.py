"""The router's decisions as a pure core: which request goes to which replica now, which is held, and what is owed to whom."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from switchgear.core.errors import NotFound, Reason, Unavailable
from switchgear.serve.promise import Promise, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """held_requests, held_bytes: requests that wait for a replica, over all services; beyond it one more is refused.

    hold_s: how long one may wait; it should exceed the time that a replica takes to start.
    in_flight_per_replica: a replica gets no more at a time; the rest is held here, where a replica that comes can take it. About
    four times what it generates together keeps it busy.
    aside_s: how long a replica that refused or broke off is left alone.
    """

    held_requests: int = 1000
    held_bytes: int = 64 << 20
    hold_s: float = 120.0
    in_flight_per_replica: int = 16
    aside_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Route:
    """A replica as the table of routes has it."""

    replica: str
    address: str
    draining: bool


@dataclass(frozen=True, slots=True)
class ServiceRoutes:
    """deleting: it takes no new request."""

    latency_target_s: float
    routes: Sequence[Route]
    deleting: bool = False
    promise: Promise = field(default_factory=Promise)


@dataclass(slots=True, eq=False)
class Replica:
    """in_flight_tokens: of the requests that it has, as estimated when they came. listed: in the newest table."""

    name: str
    address: str
    draining: bool = False
    listed: bool = True
    in_flight: int = 0
    in_flight_tokens: int = 0
    aside_until_s: float = 0.0

    def takes(self, limits: Limits, now_s: float) -> bool:
        """Whether a request may go there now."""
        return (
            self.listed
            and not self.draining
            and self.in_flight < limits.in_flight_per_replica
            and self.aside_until_s <= now_s
        )


@dataclass(slots=True, eq=False)
class Ticket:
    """One request, from arrival to answer. replica: where it is since `sent_s`; None while it is held.

    tokens: of the prompt, which are `input_tokens`, and the most that may be generated.
    deadline_s: until when it may be held; the time in replicas does not count.
    """

    number: int
    service: str
    arrival_s: float
    input_tokens: int
    tokens: int
    size_bytes: int
    deadline_s: float
    replica: Replica | None = None
    sent_s: float = 0.0


@dataclass(slots=True, eq=False)
class Service:
    """listed, deleting: in the newest table. held: by arrival, so that a retry stands in front of younger requests.

    The totals count since the router started.
    """

    listed: bool = False
    deleting: bool = False
    latency_target_s: float = 0.0
    promise: Promise = field(default_factory=Promise)
    replicas: dict[str, Replica] = field(default_factory=dict)
    held: list[Ticket] = field(default_factory=list)
    requests_total: int = 0
    tokens_total: int = 0
    input_tokens_total: int = 0
    late_total: int = 0
    failed_total: int = 0
    unanswered_tokens_total: int = 0
    tally: Tally = field(default_factory=Tally)

    @property
    def takes(self) -> bool:
        """Whether a held request may get a replica some time."""
        return self.listed and not self.deleting


class Switchboard:
    """Not knowing any table yet, it holds requests of any service."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._services: dict[str, Service] = {}
        self._have_table = False
        self._arrivals = 0
        self._held_requests = 0
        self._held_bytes = 0

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    def apply(self, table: Mapping[str, ServiceRoutes]) -> None:
        """Takes the newest table. What is not in it any more stays known while requests are there."""
        self._have_table = True
        for name, service in list(self._services.items()):
            service.listed = name in table
            routes = {route.replica for route in table[name].routes} if name in table else set()
            for replica in list(service.replicas.values()):
                replica.listed = replica.name in routes
                self._forget_idle(name, replica)
            self._forget_idle(name)
        for name, known in table.items():
            service = self._services.setdefault(name, Service())
            service.listed, service.deleting, service.latency_target_s = True, known.deleting, known.latency_target_s
            service.promise = known.promise
            for route in known.routes:
                replica = service.replicas.setdefault(route.replica, Replica(route.replica, route.address))
                replica.address, replica.draining, replica.listed = route.address, route.draining, True

    def arrive(self, name: str, *, input_tokens: int, tokens: int, size_bytes: int, now_s: float) -> Ticket:
        """Holds a new request for the service `name`; `dispatch` tells where it goes.

        Raises NotFound when the newest table has no such service or it is being deleted, Unavailable when too many requests are held already.
        """
        self.require(name)
        service = self._services.get(name)
        if (
            service is not None
        ):  # refused or not, somebody wants it; but names of which no table speaks are not collected here
            service.requests_total += 1
            service.tokens_total += tokens
            service.input_tokens_total += input_tokens
        if self._held_requests >= self._limits.held_requests or self._held_bytes + size_bytes > self._limits.held_bytes:
            if service is not None:
                service.failed_total += 1
                service.tally.broken += 1
                service.unanswered_tokens_total += tokens
            raise Unavailable(
                f"{self._held_requests} requests wait for a replica already; try again in a moment",
                Reason.LIMIT_EXCEEDED,
                held_requests_max=str(self._limits.held_requests),
            )
        if service is None:
            self._services[name] = Service(requests_total=1, tokens_total=tokens, input_tokens_total=input_tokens)
        self._arrivals += 1
        deadline_s = now_s + self._limits.hold_s
        ticket = Ticket(self._arrivals, name, now_s, input_tokens, tokens, size_bytes, deadline_s)
        self._hold(ticket)
        return ticket

    def require(self, name: str) -> None:
        """Raises NotFound when no replica will ever take a request for `name` again, as far as the newest table says."""
        service = self._services.get(name)
        if self._have_table and (service is None or not service.takes):
            raise unknown_service(name)

    def dispatch(self, service: str, now_s: float) -> list[Ticket]:
        """Gives held requests to replicas, the oldest first; those tickets have their replica set.

        A request goes where the fewest tokens are in flight.
        """
        known = self._services.get(service)
        sent = list[Ticket]()
        while known is not None and known.held:
            free = [replica for replica in known.replicas.values() if replica.takes(self._limits, now_s)]
            if not free:
                break
            replica = min(free, key=lambda r: (r.in_flight_tokens, r.in_flight, r.name))
            ticket = known.held[0]
            self._unhold(ticket)
            ticket.replica, ticket.sent_s = replica, now_s
            replica.in_flight += 1
            replica.in_flight_tokens += ticket.tokens
            sent.append(ticket)
        return sent

    def wake_s(self, service: str, now_s: float) -> float | None:
        """When `dispatch` should be asked again though nothing else happens; None when there is no such time."""
        known = self._services.get(service)
        if known is None or not known.held:
            return None
        times = [r.aside_until_s for r in known.replicas.values() if r.listed and r.aside_until_s > now_s]
        return min(times, default=None)

    def send_back(self, ticket: Ticket, now_s: float) -> None:
        """Holds a request again whose replica refused it or broke off, and leaves that replica alone for a moment."""
        if ticket.replica is not None:
            ticket.replica.aside_until_s = now_s + self._limits.aside_s
            ticket.deadline_s += now_s - ticket.sent_s
        self._hold(ticket)
        self._leave(ticket)

    def close(self, ticket: Ticket, *, late: bool = False, failed: bool = False, answered: bool = True) -> None:
        """Forgets a request, wherever it is: answered, given up or without a client."""
        service = self._services[ticket.service]
        service.late_total += late
        service.failed_total += failed
        service.tally.broken += failed or (late and not answered)
        service.unanswered_tokens_total += 0 if answered else ticket.tokens
        if ticket.replica is None:
            self._unhold(ticket)
        else:
            self._leave(ticket)

    def strangers(self) -> list[Ticket]:
        """Held requests for services that the newest table does not have or that are being deleted; to be refused."""
        return [ticket for service in self._services.values() if not service.takes for ticket in service.held]

    def _hold(self, ticket: Ticket) -> None:
        held = self._services[ticket.service].held
        bisect.insort(held, ticket, key=lambda other: other.number)
        self._held_requests += 1
        self._held_bytes += ticket.size_bytes

    def _unhold(self, ticket: Ticket) -> None:
        self._services[ticket.service].held.remove(ticket)
        self._held_requests -= 1
        self._held_bytes -= ticket.size_bytes
        self._forget_idle(ticket.service)

    def _leave(self, ticket: Ticket) -> None:
        replica, ticket.replica = ticket.replica, None
        if replica is not None:
            replica.in_flight -= 1
            replica.in_flight_tokens -= ticket.tokens
            self._forget_idle(ticket.service, replica)

    def _forget_idle(self, name: str, replica: Replica | None = None) -> None:
        service = self._services.get(name)
        if service is None:
            return
        if replica is not None and not replica.listed and not replica.in_flight:
            service.replicas.pop(replica.name, None)
        if not service.listed and not service.held and not service.replicas:
            del self._services[name]


def unknown_service(name: str) -> NotFound:
    """What is said of a service that the table does not have."""
    return NotFound(
        name,
        f"there is no inference service {name.rpartition('/')[2][:100]!r}; `switchgear services` lists them, "
        "and a new one is known here in a moment",
    )
