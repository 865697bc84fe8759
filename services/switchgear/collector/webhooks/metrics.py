"""What webhooks count."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge
from prometheus_client.registry import CollectorRegistry


class WebhookMetrics:
    """Of all receivers. Label `webhook`: what its settings name it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        webhook = ["webhook"]
        self.posts = Counter(
            "switchgear_webhook_posts", "Messages, by what became of them", [*webhook, "outcome"], registry=registry
        )
        self.dropped = Counter(
            "switchgear_webhook_alerts_dropped",
            "Alerts that a receiver did not get, by why",
            [*webhook, "reason"],
            registry=registry,
        )
        self._lag = Gauge(
            "switchgear_webhook_lag_seconds", "For how long what is due has waited", webhook, registry=registry
        )

    def follow(self, webhook: str, lag_s: Callable[[], float]) -> None:
        """A receiver is there."""
        self._lag.labels(webhook).set_function(lag_s)
        for outcome in ("sent", "retried", "refused"):
            self.posts.labels(webhook, outcome)
        for reason in ("refused", "truncated"):
            self.dropped.labels(webhook, reason)
