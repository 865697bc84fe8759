"""The autoscaler's own metrics; series of a service vanish with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from switchgear.autoscaler.demand import Demand
from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord
from switchgear.core.modes import Mode

#: Ended replicas are history: how many are kept says nothing.
_LIVE_STATES = (ReplicaState.REQUESTED, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)


class AutoscalerMetrics:
    """Registered in `registry`, one set for each. Label `service`: the service's id; bounded by the services that there are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"switchgear_inference_{name}", text, ["service", *labels], registry=registry)

        self._desired = gauge("desired_replicas", "Replicas that the service should have")
        self._replicas = gauge("replicas", "Replicas that have not ended", "state")
        self._demand = gauge("demand_tokens_per_second", "Work that arrives, in generated tokens; NaN when not known")
        self._backlog = gauge("backlog_tokens", "Work that waits, in generated tokens; NaN when not known")
        self._held = gauge("held_requests", "Requests that routers hold for want of a replica; NaN when not known")
        self._decisions = Counter(
            "switchgear_inference_decisions",
            "Changes of the number of replicas that the policy decided, by what its mode made of them",
            ["service", "direction", "mode"],
            registry=registry,
        )
        self._known: frozenset[str] = frozenset()

    def decided(self, service: str, before: int, after: int, mode: Mode) -> None:
        """The policy has changed its mind."""
        if before != after:
            self._decisions.labels(_id(service), "up" if after > before else "down", mode.value).inc()

    def show(self, service: ServiceRecord, replicas: Sequence[ReplicaRecord], demand: Demand) -> None:
        """A service as it is now."""
        name = _id(service.name)
        self._desired.labels(name).set(0 if service.deleting else service.desired)
        for state in _LIVE_STATES:
            self._replicas.labels(name, state.value).set(sum(one.state is state for one in replicas))
        known = not demand.blind
        self._demand.labels(name).set(demand.arriving_tokens_per_s if known else math.nan)
        self._backlog.labels(name).set(demand.waiting_tokens if known else math.nan)
        self._held.labels(name).set(demand.held_requests if known else math.nan)

    def forget_all_but(self, services: Iterable[str]) -> None:
        """Drops the series of services that are gone."""
        known = frozenset(_id(service) for service in services)
        for gone in self._known - known:
            for metric in (self._desired, self._replicas, self._demand, self._backlog, self._held, self._decisions):
                metric.remove_by_labels({"service": gone})
        self._known = known


def _id(service: str) -> str:
    return service.rsplit("/", 1)[-1]
