"""NVLink5 faults, XIDs 144 to 150: what their numbers say.

Source: sheet "Xid 144-150 Decode" of NVIDIA's Xid catalog (https://docs.nvidia.com/deploy/xid-errors). The first number of the line
(IntrInfo) says which unit of the GPU speaks and, in bits 25 to 20, about what; the second (ErrorStatus) has a bit for each error. The
unit was in bits 9 to 5 up to driver R570 and is in bits 6 to 0 from R575 on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from switchgear.core.catalog.table import rows

CODES = range(144, 151)
_R575 = 575
#: Worst first: a line with several errors asks for the worst of their actions.
_WORST_FIRST = ("RESET_GPU", "XID_154_EVAL", "IGNORE")


@dataclass(frozen=True, slots=True)
class Decoded:
    """action: what to do now; investigatory_action: what to do when it comes again. fatal: as the sheet has it."""

    unit: str
    action: str
    investigatory_action: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class _Rule:
    units: frozenset[str]
    unit_before_r575: int
    unit_from_r575: int
    subtype: int
    #: Empty: whatever the status is.
    statuses: frozenset[int]
    escalated_action: str
    decoded: Decoded


@cache
def _rules() -> Mapping[int, Sequence[_Rule]]:
    rules = dict[int, list[_Rule]]()
    for row in rows("nvlink5"):
        statuses = frozenset(int(status, 16) for status in row["error_status"].split("/") if status)
        decoded = Decoded(row["unit"], row["action"], row["investigatory_action"], row["severity"] == "FATAL")
        rule = _Rule(
            frozenset(row["unit"].split("/")),
            int(row["unit_before_r575"]),
            int(row["unit_from_r575"]),
            int(row["subtype"]),
            statuses,
            row["escalated_action"],
            decoded,
        )
        rules.setdefault(int(row["code"]), []).append(rule)
    return rules


def decode_nvlink5(code: int, unit: str, intrinfo: int, error_status: int | None, driver: str = "") -> Decoded | None:
    """What a line of XID `code` (144 to 150) says, or None when the sheet does not have it.

    unit: as the line spells it. driver: its version, "570.148.08"; "" when unknown: then the layout in which the unit's name and its
    number agree.
    """
    found = re.match(r"(\d{1,4})\.", driver)
    layouts: tuple[Callable[[_Rule, int], bool | None], ...] = (_before_r575, _from_r575)
    if found:
        layouts = layouts[:1] if int(found.group(1)) < _R575 else layouts[1:]
    units = frozenset(unit.split("/"))
    rules = [rule for rule in _rules().get(code, ()) if units & rule.units]
    for layout in layouts:
        if decoded := _worst(
            [(rule, escalated) for rule in rules if (escalated := layout(rule, intrinfo)) is not None], error_status
        ):
            return decoded
    return None


def _before_r575(rule: _Rule, intrinfo: int) -> bool | None:
    """Whether the rule's escalation applies; None when the rule does not."""
    if (intrinfo >> 20 & 0x3F, intrinfo >> 5 & 0x1F) != (rule.subtype, rule.unit_before_r575):
        return None
    return bool(intrinfo >> 10 & 1)


def _from_r575(rule: _Rule, intrinfo: int) -> bool | None:
    if (intrinfo >> 20 & 0x3F, intrinfo & 0x7F) != (rule.subtype, rule.unit_from_r575):
        return None
    return bool(intrinfo >> 7 & 1)


def _worst(rules: Sequence[tuple[_Rule, bool]], error_status: int | None) -> Decoded | None:
    status = error_status or 0
    exact = [pair for pair in rules if not pair[0].statuses or status in pair[0].statuses]
    # Several errors at once set several bits.
    chosen = exact or [pair for pair in rules if any(bit and status & bit == bit for bit in pair[0].statuses)]
    decoded = [_escalated(*pair) for pair in chosen]
    return min(decoded, key=lambda one: _WORST_FIRST.index(one.action), default=None)


def _escalated(rule: _Rule, escalated: bool) -> Decoded:
    known = rule.decoded
    if not (escalated and rule.escalated_action):
        return known
    return Decoded(known.unit, rule.escalated_action, known.investigatory_action, fatal=True)
