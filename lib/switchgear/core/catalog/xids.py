"""GPU faults by their XID code, and what they ask for.

Source of `xid.csv`: sheet "Xids" of NVIDIA's Xid catalog (Xid-Catalog.xlsx at https://docs.nvidia.com/deploy/xid-errors); a code without
a meaning is one that it calls unused. `overrides.csv` is ours: where the catalog names a workflow or nothing, or lacks the code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from switchgear.core.catalog.nvlink5 import CODES as NVLINK5
from switchgear.core.catalog.severity import Severity, Verdict
from switchgear.core.catalog.table import rows

GPU_LOST = 79
RECOVERY_ACTION_CHANGED = 154
_SUPPORT = "CONTACT_SUPPORT"
_FATAL = frozenset({"RESET_GPU", "RESTART_BM", "RESTART_VM"})
# XID 154 says which action the driver wants now; its words vary between drivers, the code does not.
_RECOVERY = re.compile(r" to 0x([0-9a-fA-F]{1,8})\b")
_NVLINK5_FATAL = re.compile(r"\bFatal\b")
#: NVML's constants of nvmlDeviceGpuRecoveryAction_t, which the line of XID 154 prints.
_RECOVERY_ACTIONS = {
    0: Verdict("NONE", Severity.INFO),
    1: Verdict("RESET_GPU", Severity.FATAL),
    2: Verdict("RESTART_BM", Severity.FATAL),
    3: Verdict("DRAIN_P2P", Severity.WARNING),
    4: Verdict("DRAIN_AND_RESET", Severity.WARNING),
    5: Verdict("RECOVER_IMEX_DOMAIN", Severity.WARNING),
    6: Verdict("BUS_RESET", Severity.FATAL),
    7: Verdict("RESTART_BM", Severity.FATAL),
}


@dataclass(frozen=True, slots=True)
class Xid:
    """A row of NVIDIA's catalog. meaning: "" for a code that it calls unused."""

    code: int
    mnemonic: str
    meaning: str
    immediate_action: str
    investigatory_action: str


@dataclass(frozen=True, slots=True)
class Override:
    """Where we decide otherwise than the catalog, and why."""

    code: int
    verdict: Verdict
    why: str


@cache
def _xids() -> Mapping[int, Xid]:
    return {
        int(row["code"]): Xid(
            int(row["code"]), row["mnemonic"], row["meaning"], row["immediate_action"], row["investigatory_action"]
        )
        for row in rows("xid")
    }


@cache
def _overrides() -> Mapping[int, Override]:
    return {
        int(row["code"]): Override(int(row["code"]), Verdict(row["action"], Severity(row["severity"])), row["why"])
        for row in rows("overrides")
    }


def xid(code: int) -> Xid | None:
    """The catalog's row, or None for a code that it does not have."""
    return _xids().get(code)


def overrides() -> Sequence[Override]:
    """All of ours, by code."""
    return list(_overrides().values())


def recovery_action(code: int) -> Verdict | None:
    """What the driver's recovery action (NVML field 230, event 0x8000, XID 154) asks for; None for one that is not known."""
    return _RECOVERY_ACTIONS.get(code)


def judge_xid(code: int, text: str = "", decoded_action: str = "") -> Verdict:
    """What the XID `code` asks for. A code that nobody knows asks for support: it is told, never dropped.

    text: the log line; codes 144 to 150 and 154 say in it how bad it is. decoded_action: of `decode_nvlink5`, "" when not decoded.
    Fatal is what needs a reset or a restart of the machine, and an uncorrected memory or NVLink error.
    """
    if code == RECOVERY_ACTION_CHANGED:
        match = _RECOVERY.search(text)
        return (_RECOVERY_ACTIONS.get(int(match.group(1), 16)) if match else None) or Verdict(
            "XID_154", Severity.WARNING
        )
    if code in NVLINK5:
        return _judge_nvlink5(text, decoded_action)
    if override := _overrides().get(code):
        return override.verdict
    row = _xids().get(code)
    action = row.immediate_action if row else _SUPPORT
    if action in _FATAL:
        return Verdict(action, Severity.FATAL)
    # An unused code that comes nevertheless is news, whatever the catalog has in its row.
    ignore = action == "IGNORE" and row is not None and row.meaning != ""
    return Verdict(action, Severity.INFO if ignore else Severity.WARNING)


def _judge_nvlink5(text: str, decoded_action: str) -> Verdict:
    if decoded_action in _FATAL:
        return Verdict(decoded_action, Severity.FATAL)
    fatal = _NVLINK5_FATAL.search(text) is not None
    if decoded_action:
        quiet = decoded_action == "IGNORE" and not fatal
        return Verdict(decoded_action, Severity.INFO if quiet else Severity.WARNING)
    return Verdict("WORKFLOW_NVLINK5_ERR", Severity.FATAL if fatal else Severity.WARNING)
