"""NVSwitch faults.

Source: NVIDIA's guide to fabric manager for HGX systems, appendix on NVSwitch errors; the column `action` in our words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from switchgear.core.catalog.table import rows


@dataclass(frozen=True, slots=True)
class SXid:
    """fatal: whether it ends what uses the fabric; None when that depends on the port, which only the line tells."""

    code: int
    name: str
    fatal: bool | None
    action: str


_FATAL: Mapping[str, bool | None] = {"always": True, "possibly": None, "never": False}


@cache
def _sxids() -> Mapping[int, SXid]:
    return {
        int(row["code"]): SXid(int(row["code"]), row["name"], _FATAL[row["fatal"]], row["action"])
        for row in rows("sxid")
    }


def sxid(code: int) -> SXid:
    """What is known of `code`; of a code that is not in the table nothing but that someone must look at it."""
    return _sxids().get(code) or SXid(code, "", None, "CONTACT_SUPPORT")
