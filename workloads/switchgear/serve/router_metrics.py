"""Metrics of the router. The label `service` is the id of a service of the newest table, empty for a request to none of them."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120)


class RouterMetrics:
    """requests: answers to clients, by HTTP status; 499: the client went away. late: answered beyond the target of the
    service, or given up by the client beyond it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        service = ["service"]
        self.requests = Counter(
            "switchgear_router_requests", "Requests answered", [*service, "code"], registry=registry
        )
        self.seconds = Histogram(
            "switchgear_router_request_seconds",
            "From arrival to the whole answer, of those answered with 200",
            service,
            buckets=_BUCKETS,
            registry=registry,
        )
        self.late = Counter(
            "switchgear_router_late_requests",
            "Requests answered, or given up by the client, later than the service's target",
            service,
            registry=registry,
        )
        self.held = Gauge(
            "switchgear_router_held_requests", "Requests that wait for a replica", service, registry=registry
        )
        self.retries = Counter(
            "switchgear_router_retries",
            "Requests sent again after a replica refused or broke off",
            service,
            registry=registry,
        )
        self.connected = Gauge(
            "switchgear_router_connected", "1 while tables come from the autoscaler", registry=registry
        )
        self._codes: dict[str, set[str]] = {"": set()}

    def answered(self, service: str, status: int) -> None:
        """Counts an answer to a client. service: one that was given to `keep`, or empty."""
        code = str(status)
        self._codes.setdefault(service, set()).add(code)
        self.requests.labels(service, code).inc()

    def keep(self, services: Iterable[str]) -> None:
        """Begins the series of these services and forgets those of all others."""
        wanted = {"", *services}
        for service in wanted - self._codes.keys():
            self._codes[service] = {"200"}
            self.requests.labels(service, "200")
            for metric in (self.seconds, self.late, self.held, self.retries):
                metric.labels(service)
        for service in self._codes.keys() - wanted:
            for code in self._codes.pop(service):
                self.requests.remove(service, code)
            for metric in (self.seconds, self.late, self.held, self.retries):
                metric.remove(service)
