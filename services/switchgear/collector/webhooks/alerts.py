"""From what is open on a node to alerts, as Prometheus and Alertmanager know them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from switchgear.collector.health import SILENT, Condition, NodeHealth
from switchgear.collector.model import Severity
from switchgear.core.catalog import kind as kind_of
from switchgear.core.catalog import xid

GPU_FAULT, NODE_FAULT, NODE_SILENT = "GpuFault", "NodeFault", "NodeSilent"
#: As in the rules of ours for Prometheus.
_SEVERITIES = {Severity.FATAL: "critical", Severity.WARNING: "warning"}
#: Kinds that have their code among the XIDs.
_XIDS = frozenset({"XID", "GPU_LOST"})


@dataclass(frozen=True, slots=True)
class Alert:
    """labels: what it is; the same fault has the same. annotations: what to know about it."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    begin_unix_ns: int

    @property
    def fingerprint(self) -> str:
        """Of the labels, 16 hexadecimal digits as Alertmanager's; not the same digits."""
        said = "\0".join(f"{name}\0{value}" for name, value in sorted(self.labels.items()))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def alerts_of(health: NodeHealth, severities: Collection[Severity]) -> tuple[Alert, ...]:
    """What is open of these severities, worst first."""
    node = health.node.partition("/")[2]
    return tuple(_alert(node, one) for one in health.conditions if one.severity in severities)


def _alert(node: str, one: Condition) -> Alert:
    name = NODE_SILENT if one.kind == SILENT else GPU_FAULT if one.subject.gpu is not None else NODE_FAULT
    labels = {
        "alertname": name,
        "node": node,
        "gpu": "" if one.subject.gpu is None else str(one.subject.gpu),
        "kind": one.kind,
        "code": "" if one.code is None else str(one.code),
        "subject": one.subject.text,
        "severity": _SEVERITIES[one.severity],
        "simulated": "true" if one.simulated else "",
    }
    annotations = {
        "summary": f"{one.text} of {node}" if one.kind != SILENT else f"{node} is silent",
        "description": "; ".join(filter(None, (_meaning(one), one.evidence))),
        "action": one.action,
        "runbook": f"docs/runbook.md#{name.lower()}",
    }
    # An empty label is none to Prometheus and Alertmanager.
    return Alert(_filled(labels), _filled(annotations), one.begin_unix_ns)


def _meaning(one: Condition) -> str:
    if one.kind in _XIDS and one.code is not None and (known := xid(one.code)) is not None and known.meaning:
        return known.meaning
    found = kind_of(one.kind)
    return found.meaning if found is not None else ""


def _filled(values: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in values.items() if value}
