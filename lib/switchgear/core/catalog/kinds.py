"""Kinds of events that the kernel log, a driver, or the agent's own look at the node tells: how bad, what to do, what they are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from switchgear.core.catalog.severity import Severity, Verdict
from switchgear.core.catalog.table import rows


@dataclass(frozen=True, slots=True)
class Kind:
    """severity: of most events of this kind; a line may say that it is worse or better. subject: gpu, nic, disk, process, …"""

    name: str
    severity: Severity
    action: str
    subject: str
    meaning: str

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.action, self.severity)


_TABLES = ("kinds", "node_kinds", "driver_kinds", "agent_kinds", "collector_kinds")


@cache
def _kinds(table: str) -> Mapping[str, Kind]:
    return {
        row["kind"]: Kind(row["kind"], Severity(row["severity"]), row["action"], row["subject"], row["meaning"])
        for row in rows(table)
    }


def kind(name: str) -> Kind | None:
    """The kind of this name, or None for one that is in no table."""
    return next((found for table in _TABLES if (found := _kinds(table).get(name)) is not None), None)


class _Names:
    """All names of a table, in its order; read when first used."""

    def __init__(self, table: str) -> None:
        self._table = table

    def __iter__(self) -> Iterator[str]:
        return iter(_kinds(self._table))

    def __contains__(self, name: object) -> bool:
        return name in _kinds(self._table)


#: Of the kernel log.
KINDS = _Names("kinds")
#: Of the agent's own look at network and host.
NODE_KINDS = _Names("node_kinds")
#: Of the drivers of GPUs.
DRIVER_KINDS = _Names("driver_kinds")
#: Of the agent itself, and what the collector finds about one.
AGENT_KINDS = _Names("agent_kinds")
#: Of what the collector reads at others' exporters.
COLLECTOR_KINDS = _Names("collector_kinds")
