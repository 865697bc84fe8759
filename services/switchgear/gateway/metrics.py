"""What the gateway counts of REST, and the modes of policies, which it serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from switchgear.core.modes import Mode
from switchgear.store.policies import POLICIES, PolicyModes

log = logging.getLogger(__name__)

#: Others may set a mode too; Prometheus looks no more often than this.
READ_S = 5.0
_VERBS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class RequestMetrics:
    """Counts requests by route: the path as the contract has it, so that names of resources make no series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "switchgear_gateway_requests",
            "REST requests that were answered; route `other`: a path that does not exist",
            ["method", "route", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "switchgear_gateway_request_seconds",
            "From request to answer, of those that are no stream",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
            registry=registry,
        )

    def answered(self, method: str, route: str, code: int, seconds: float | None) -> None:
        """seconds: None for a stream, whose length is no latency."""
        self._requests.labels(method if method in _VERBS else "other", route, str(code)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)


class CountRequests:
    """ASGI middleware in front of all others, so that what they refuse is counted too."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, code, streams = time.perf_counter(), 500, False

        async def noted(message: Message) -> None:
            nonlocal code, streams
            if message["type"] == "http.response.start":
                code = message["status"]
                streams = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route: str = getattr(scope.get("route"), "path", "other")
            seconds = None if streams else time.perf_counter() - start_s
            self._metrics.answered(scope["method"], route, code, seconds)


class PolicyMetrics(Collector):
    """Registers itself. What it shows `run` has read: a scrape asks no database."""

    def __init__(self, registry: CollectorRegistry, modes: PolicyModes) -> None:
        self._modes = modes
        self._seen: Mapping[str, Mode] = {}
        registry.register(self)

    async def run(self) -> None:
        """Reads the modes again and again, until cancelled."""
        while True:
            try:
                self._seen = {policy: await self._modes.of(policy) for policy in POLICIES}
            except Exception:
                log.exception("cannot read the modes of policies; trying again")
            await asyncio.sleep(READ_S)

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "switchgear_policy_mode", "1 for the mode that the policy is in", labels=["policy", "mode"]
        )
        for policy, current in self._seen.items():
            for mode in Mode:
                family.add_metric([policy, mode.value], float(mode is current))
        yield family
