"""What goes to a receiver, byte by byte. Pure.

Sources: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config (version "4") and Alertmanager's own API,
https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml (POST /alerts).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from switchgear.collector.webhooks.alerts import Alert
from switchgear.collector.webhooks.groups import Notification

#: As Alertmanager says that an alert has not ended.
_NEVER = "0001-01-01T00:00:00Z"
#: Of the time after which all is told again: so often may it fail before Alertmanager takes an alert for over, as with Prometheus.
_REPEATS_UNTIL_END = 4


def webhook(
    notification: Notification,
    *,
    receiver: str,
    external_url: str,
    alerts_max: int,
    send_resolved: bool,
    now_unix_ns: int,
) -> bytes:
    """One message about one node."""
    node = notification.node.partition("/")[2]
    alerts = [_webhook_alert(alert, "firing", _NEVER, external_url) for alert in notification.firing]
    if send_resolved:
        alerts += [
            _webhook_alert(alert, "resolved", _end(alert, now_unix_ns), external_url) for alert in notification.resolved
        ]
    shown = alerts[:alerts_max]
    message = {
        "version": "4",
        "groupKey": f'{{}}:{{node="{node}"}}',
        "truncatedAlerts": len(alerts) - len(shown),
        "status": "firing" if notification.firing else "resolved",
        "receiver": receiver,
        "groupLabels": {"node": node},
        "commonLabels": _common([alert["labels"] for alert in shown]),
        "commonAnnotations": _common([alert["annotations"] for alert in shown]),
        "externalURL": external_url,
        "alerts": shown,
    }
    return json.dumps(message).encode()


def alertmanager(
    notifications: Iterable[Notification], *, external_url: str, alerts_max: int, repeat_s: float, now_unix_ns: int
) -> bytes:
    """What is open on several nodes, good for four repetitions, and what is over."""
    until = _time(now_unix_ns + round(_REPEATS_UNTIL_END * repeat_s * 1e9))
    alerts = list[dict[str, Any]]()
    for one in notifications:
        open_ = [_alert(alert, until, external_url) for alert in one.firing]
        # Over is over: what is left out here would be open for another four repetitions.
        alerts += [
            *open_[:alerts_max],
            *(_alert(alert, _end(alert, now_unix_ns), external_url) for alert in one.resolved),
        ]
    return json.dumps(alerts).encode()


def _alert(alert: Alert, ends: str, external_url: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": _time(alert.begin_unix_ns),
        "endsAt": ends,
    }
    if external_url:
        said["generatorURL"] = f"{external_url.rstrip('/')}/v1alpha/nodes/{alert.labels['node']}/health"
    return said


def _webhook_alert(alert: Alert, status: str, ends: str, external_url: str) -> dict[str, Any]:
    return {
        "status": status,
        "generatorURL": "",
        **_alert(alert, ends, external_url),
        "fingerprint": alert.fingerprint,
    }


def _end(alert: Alert, now_unix_ns: int) -> str:
    """Alertmanager refuses one that ended before it began, as it looks when the clock was set back."""
    return _time(max(now_unix_ns, alert.begin_unix_ns))


def _common(maps: Sequence[Mapping[str, str]]) -> dict[str, str]:
    if not maps:
        return {}
    return {name: value for name, value in maps[0].items() if all(one.get(name) == value for one in maps)}


def _time(unix_ns: int) -> str:
    """RFC 3339, to the microsecond."""
    return datetime.fromtimestamp(unix_ns // 1000 / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
