"""Domain values of the collector."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from switchgear.core import catalog

Severity = catalog.Severity


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a node, told by its agent; identified by (boot_id, source, sequence).

    node: `nodes/{node}`. kind: of `core.catalog`, or one that a newer agent knows.
    """

    node: str
    boot_id: str
    source: str
    sequence: int
    time_unix_ns: int
    kind: str
    gpu: int | None
    code: int | None
    text: str
    simulated: bool
    pci: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.boot_id, self.source, self.sequence


@dataclass(frozen=True, slots=True)
class Signal:
    """What a detector concluded; see `switchgear.v1.Signal`. gpu: index, or None for the whole node."""

    signal_id: str
    node: str
    gpu: int | None
    kind: str
    severity: Severity
    action: str
    evidence: str
    time_unix_ns: int
    simulated: bool


def signal_id(*parts: object) -> str:
    """The same id for the same cause, so that a signal that is raised twice is one."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]
