"""What an XID asks for. Pure.

Source: the immediate actions ("resolution buckets") of NVIDIA's Xid catalog, Xid-Catalog.xlsx at
https://docs.nvidia.com/deploy/xid-errors. Codes that it calls unused, and codes that it does not have, ask for support.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from switchgear.collector.model import Severity

GPU_LOST_CODE = 79

_CODES: dict[str, tuple[int, ...]] = {
    "IGNORE": (14, 37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160, 161),
    "RESTART_APP": (
        *(8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, *range(82, 87)),
        *(88, 89, 94, *range(96, 106), *range(126, 136), 139),
    ),
    "RESET_GPU": (46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    "RESTART_BM": (GPU_LOST_CODE,),
    "RESTART_VM": (151,),
    "CHECK_MECHANICALS": (54,),
    "UPDATE_SWFW": (78,),
    "CHECK_UVM": (159,),
    "WORKFLOW_XID_45": (45,),
    "WORKFLOW_XID_48": (48,),
    "WORKFLOW_NVLINK_ERR": (74,),
    "WORKFLOW_NVLINK5_ERR": tuple(range(144, 151)),
    "UNSPECIFIED": tuple(range(162, 173)),
}
_ACTIONS = {code: action for action, codes in _CODES.items() for code in codes}
_FATAL = frozenset({"RESET_GPU", "RESTART_BM", "RESTART_VM", "WORKFLOW_XID_48", "WORKFLOW_NVLINK_ERR"})

_NVLINK5_FATAL = re.compile(r"\bFatal\b")
# XID 154 says which action the driver wants now; its words vary between drivers, the code does not.
_RECOVERY = re.compile(r" to 0x([0-9a-fA-F]+)")
_RECOVERY_ACTIONS = {
    0: ("NONE", Severity.INFO),
    1: ("RESET_GPU", Severity.FATAL),
    2: ("RESTART_BM", Severity.FATAL),
    3: ("DRAIN_P2P", Severity.WARNING),
    4: ("DRAIN_AND_RESET", Severity.WARNING),
    5: ("RECOVER_IMEX_DOMAIN", Severity.WARNING),
    6: ("BUS_RESET", Severity.FATAL),
    7: ("RESTART_BM", Severity.FATAL),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """action: in the catalog's words."""

    action: str
    severity: Severity


def verdict(code: int, text: str) -> Verdict:
    """What the XID `code` asks for.

    text: the log line; codes 144 to 150 and 154 say in it how bad it is. Fatal is what needs a reset or a restart of the machine, and
    an uncorrected memory or NVLink error. XID 45 is a warning: it follows whenever a process that uses a GPU is killed, and the
    cause, where there is one, has a code of its own.
    """
    if code == 154:
        match = _RECOVERY.search(text)
        known = _RECOVERY_ACTIONS.get(int(match.group(1), 16)) if match else None
        return Verdict(*known) if known else Verdict("XID_154", Severity.WARNING)
    action = _ACTIONS.get(code, "CONTACT_SUPPORT")
    if action in _FATAL or (action == "WORKFLOW_NVLINK5_ERR" and _NVLINK5_FATAL.search(text)):
        return Verdict(action, Severity.FATAL)
    return Verdict(action, Severity.INFO if action == "IGNORE" else Severity.WARNING)
