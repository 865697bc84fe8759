"""Who is told of faults: `[[webhook]]` of the collector's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from switchgear.collector.export.settings import Receiver, Url
from switchgear.collector.model import Severity

#: Each follows all nodes.
WEBHOOKS_MAX = 16
#: As Alertmanager's own default; and for Alertmanager itself, which forgets what it is not told again, as Prometheus does.
REPEAT_S = {"webhook": 4 * 3600.0, "alertmanager": 60.0}


class Webhook(Receiver):
    """One receiver.

    url: where to; url_file: the file that has it, where whoever knows the url may post there. name: in metrics, in messages, and in the
    database beside what was told: with another name all that is open is told anew. HOST:PORT of the url when left out.
    format: "webhook": as Alertmanager calls webhooks, one message a node; "alertmanager": to Alertmanager's own /api/v2/alerts.
    severity_min: of what is told. send_resolved: whether ends are told; always to Alertmanager.
    group_wait_s: from the first change on a node to its message, so that what happens together is told together.
    repeat_interval_s: after which all that is still open is told again.
    alerts_max: of a message; the mildest of a node are only counted in it.
    external_url: of this installation's gateway, for links back.
    """

    url: Url | Literal[""] = ""
    url_file: Path | None = None
    format: Literal["webhook", "alertmanager"] = "webhook"
    severity_min: Literal["warning", "fatal"] = "warning"
    send_resolved: bool = True
    group_wait_s: float = Field(2.0, ge=0, le=300)
    repeat_interval_s: float = Field(0.0, ge=0, le=7 * 24 * 3600, description="0: that of the format")
    alerts_max: int = Field(100, ge=1, le=1000)
    external_url: Url | Literal[""] = ""
    timeout_s: float = Field(10.0, gt=0, le=300)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if bool(self.url) is (self.url_file is not None):
            raise ValueError("give url or url_file")
        if self.url_file is not None and not self.name:
            raise ValueError("with url_file give a name, since the url is not to be shown")
        if self.format == "alertmanager" and not self.send_resolved:
            raise ValueError("Alertmanager is always told of ends; its own receivers have send_resolved")
        return self

    @property
    def label(self) -> str:
        """Who it is in metrics, logs and messages."""
        return self.name or urlsplit(self.url).netloc[:64]

    @property
    def repeat_s(self) -> float:
        return self.repeat_interval_s or REPEAT_S[self.format]

    @property
    def severities(self) -> frozenset[Severity]:
        """Those that are told."""
        return frozenset({Severity.FATAL} if self.severity_min == "fatal" else {Severity.FATAL, Severity.WARNING})


def _names_differ(webhooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
    labels = [webhook.label for webhook in webhooks]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice; give each a name of its own")
    return webhooks


Webhooks = Annotated[tuple[Webhook, ...], Field(max_length=WEBHOOKS_MAX), AfterValidator(_names_differ)]
