"""When a fault that was told is over. The first row that fits decides; an empty cell fits all, and so the last row fits what no other does.

The table is ours: what an agent or the kernel tells of an end, and where nobody tells one, how long the fault is taken to last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from switchgear.core.catalog.severity import Severity
from switchgear.core.catalog.table import rows

#: What stands in the table for the node telling something again.
NODE_HEARD = "NODE_HEARD"


class Until(StrEnum):
    """Whose new start ends it."""

    NOTHING = ""
    BOOT = "boot"
    AGENT = "agent"
    COLLECTOR = "collector"


@dataclass(frozen=True, slots=True)
class End:
    """What ends a fault, whichever comes first; an operator may always.

    ended_by: kinds of events about the same subject, of severity INFO. quiet_s: since it was told last; None: time does not.
    """

    ended_by: frozenset[str]
    until: Until
    quiet_s: float | None
    why: str


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    code: int | None
    action: str
    severity: str
    end: End

    def fits(self, kind: str, code: int | None, action: str, severity: Severity) -> bool:
        return (
            self.kind in ("", kind)
            and self.code in (None, code)
            and self.action in ("", action)
            and self.severity in ("", severity)
        )


@cache
def _table() -> Sequence[_Row]:
    return [
        _Row(
            row["kind"],
            int(row["code"]) if row["code"] else None,
            row["action"],
            row["severity"],
            End(
                frozenset(filter(None, row["ended_by"].split("/"))),
                Until(row["until"]),
                float(row["quiet_s"]) if row["quiet_s"] else None,
                row["why"],
            ),
        )
        for row in rows("ends")
    ]


@cache
def end_of(kind: str, code: int | None, action: str, severity: Severity) -> End:
    """What ends such a fault. action, severity: as `judge` said."""
    return next(row.end for row in _table() if row.fits(kind, code, action, severity))
