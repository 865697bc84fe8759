"""Kinds of events that the kernel log tells: how bad, what to do, what they are about, what they mean."""

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


@cache
def _kinds() -> Mapping[str, Kind]:
    return {
        row["kind"]: Kind(row["kind"], Severity(row["severity"]), row["action"], row["subject"], row["meaning"])
        for row in rows("kinds")
    }


def kind(name: str) -> Kind | None:
    """The kind of this name, or None for one that is not in the table."""
    return _kinds().get(name)


class _Names:
    """All names, in the order of the table; read when first used."""

    def __iter__(self) -> Iterator[str]:
        return iter(_kinds())

    def __contains__(self, name: object) -> bool:
        return name in _kinds()


KINDS = _Names()
