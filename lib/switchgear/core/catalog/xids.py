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
#: A channel that was taken from a process which had done nothing.
_REMOVED = 45
_CAUSED = re.compile(r"caused by previous Xid \d")
_SUPPORT = "CONTACT_SUPPORT"
#: What else the decoding of NVLink5 faults ends in: nothing, or what XID 154 says next.
_NVLINK5_MILD = frozenset({"IGNORE", "XID_154_EVAL"})
_FATAL = frozenset({"RESET_GPU", "RESTART_BM", "RESTART_VM"})
# XID 154 says which action the driver wants now; its words vary between drivers, the code does not.
_RECOVERY = re.compile(r" to 0x([0-9a-fA-F]{1,8})\b")
_NVLINK5_FATAL = re.compile(r"\bFatal\b")
#: NVML's constants of nvmlDeviceGpuRecoveryAction_t, which the line of XID 154 prints.
_RECOVERY_ACTIONS = (
    ("NONE", Verdict("NONE", Severity.INFO)),
    ("GPU_RESET", Verdict("RESET_GPU", Severity.FATAL)),
    ("NODE_REBOOT", Verdict("RESTART_BM", Severity.FATAL)),
    ("DRAIN_P2P", Verdict("DRAIN_P2P", Severity.WARNING)),
    ("DRAIN_AND_RESET", Verdict("DRAIN_AND_RESET", Severity.WARNING)),
    ("RECOVER_IMEX_DOMAIN", Verdict("RECOVER_IMEX_DOMAIN", Severity.WARNING)),
    ("BUS_RESET", Verdict("BUS_RESET", Severity.FATAL)),
    ("SYSTEM_REBOOT", Verdict("RESTART_BM", Severity.FATAL)),
)


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
    return _RECOVERY_ACTIONS[code][1] if 0 <= code < len(_RECOVERY_ACTIONS) else None


def recovery_action_named(name: str) -> Verdict | None:
    """The same by the end of the name of NVML's constant."""
    return dict(_RECOVERY_ACTIONS).get(name)


def judge_xid(code: int, text: str = "", decoded_action: str = "") -> Verdict:
    """What the XID `code` asks for. A code that nobody knows asks for support: it is told, never dropped.

    text: the log line; codes 144 to 150 and 154 say in it how bad it is. decoded_action: of `decode_nvlink5`, "" when not decoded.
    Fatal is what needs a reset or a restart of the machine, and an uncorrected memory or NVLink error.
    """
    if code == RECOVERY_ACTION_CHANGED:
        match = _RECOVERY.search(text)
        return (recovery_action(int(match[1], 16)) if match else None) or Verdict("XID_154", Severity.WARNING)
    if code in NVLINK5:
        return _judge_nvlink5(text, decoded_action)
    if code == _REMOVED and _CAUSED.search(text):
        return Verdict("IGNORE", Severity.INFO)  # what it asks for was told with the cause
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
    if decoded_action in _NVLINK5_MILD:
        quiet = decoded_action == "IGNORE" and not fatal
        return Verdict(decoded_action, Severity.INFO if quiet else Severity.WARNING)
    return Verdict("WORKFLOW_NVLINK5_ERR", Severity.FATAL if fatal else Severity.WARNING)
