"""The autoscaler's own metrics; series of a service vanish with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord
from switchgear.autoscaler.observation import Observation
from switchgear.autoscaler.scaling import Scaling
from switchgear.autoscaler.sharing import Sharing
from switchgear.autoscaler.standoff import Kind
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
        tokens = "tokens of prompts and the most that may be generated; NaN when not known"
        self._demand = gauge("demand_tokens_per_second", f"Work that arrives: {tokens}")
        self._backlog = gauge("backlog_tokens", f"Work that routers hold: {tokens}")
        self._held = gauge("held_requests", "Requests that routers hold for want of a replica; NaN when not known")
        self._blind = gauge("blind", "1 while figures of the service may be wrong, so that its policy does not go down")
        self._promised = Counter(
            "switchgear_inference_promised_requests",
            "Requests that kept the promise of their service, and that broke it",
            ["service", "outcome"],
            registry=registry,
        )
        self._shadow = Gauge(
            "switchgear_autoscaler_shadow_replicas",
            "Replicas that the shadow policy of the service would have",
            ["service", "policy"],
            registry=registry,
        )
        self.unlogged = Counter(
            "switchgear_autoscaler_unlogged_decisions",
            "Decisions that could not be written to the decision log",
            registry=registry,
        )
        self._decisions = Counter(
            "switchgear_inference_decisions",
            "Changes of the number of replicas that the policy decided, by what its mode made of them",
            ["service", "direction", "mode"],
            registry=registry,
        )
        self._standoff = Gauge(
            "switchgear_autoscaler_standoff",
            "Whether the service is in a standoff of this kind",
            ["service", "kind"],
            registry=registry,
        )
        self._borrowed = gauge("borrowed_gpus", "GPUs of training jobs that went back to the queue for its replicas")
        self._known: frozenset[str] = frozenset()
        #: Names of the shadows that are shown, by service.
        self._shadows: dict[str, str] = {}

    def decided(self, service: str, seen: Observation, before: int, after: int, mode: Mode) -> None:
        """A policy has decided. before, after: what it had decided last, and now."""
        name = _id(service)
        self._promised.labels(name, "kept").inc(seen.kept or 0)
        self._promised.labels(name, "broken").inc(seen.broken or 0)
        if before != after:
            self._decisions.labels(name, "up" if after > before else "down", mode.value).inc()

    def show(
        self, service: ServiceRecord, replicas: Sequence[ReplicaRecord], scaling: Scaling | None, shares: Sharing
    ) -> None:
        """A service as it is now. scaling: its policies; None: nothing has been decided yet."""
        name = _id(service.name)
        self._desired.labels(name).set(0 if service.deleting else service.desired)
        for state in _LIVE_STATES:
            self._replicas.labels(name, state.value).set(sum(one.state is state for one in replicas))
        seen = scaling.seen if scaling else None
        queue = seen.queue if seen and not seen.blind else None
        self._blind.labels(name).set(bool(seen and seen.blind))
        self._demand.labels(name).set(scaling.arriving_tokens_per_s if scaling and queue else math.nan)
        waiting = (queue.input_tokens or 0) + (queue.output_tokens or 0) if queue else math.nan
        self._backlog.labels(name).set(waiting)
        self._held.labels(name).set(queue.requests if queue else math.nan)
        self._show_shadow(name, scaling)
        kinds = {one.kind for one in shares.standoffs}
        for kind in Kind:
            self._standoff.labels(name, kind.value).set(kind in kinds)
        self._borrowed.labels(name).set(sum(loan.gpus for loan in shares.loans))

    def forget_all_but(self, services: Iterable[str]) -> None:
        """Drops the series of services that are gone."""
        known = frozenset(_id(service) for service in services)
        for gone in self._known - known:
            for metric in (
                self._desired,
                self._replicas,
                self._demand,
                self._backlog,
                self._held,
                self._blind,
                self._promised,
                self._shadow,
                self._decisions,
                self._standoff,
                self._borrowed,
            ):
                metric.remove_by_labels({"service": gone})
            self._shadows.pop(gone, None)
        self._known = known

    def _show_shadow(self, service: str, scaling: Scaling | None) -> None:
        shadow = scaling.shadow if scaling else None
        policy = shadow.name if shadow else ""
        if policy != self._shadows.get(service, ""):
            self._shadow.remove_by_labels({"service": service})
        self._shadows[service] = policy
        if shadow and scaling and scaling.seen:
            self._shadow.labels(service, policy).set(scaling.seen.bounded(shadow.decision.replicas))


def _id(service: str) -> str:
    return service.rsplit("/", 1)[-1]
