"""Catalogs of faults as data: XIDs, SXids, the decoding of NVLink5 XIDs, kinds of events; read when first asked for. Pure.

The tables beside this file say where they come from in the module that reads them. What we decide otherwise than NVIDIA stands in
`overrides.csv`, each with its reason.
"""

from switchgear.core.catalog.ends import NODE_HEARD, End, Until, end_of
from switchgear.core.catalog.judge import judge
from switchgear.core.catalog.kinds import AGENT_KINDS, COLLECTOR_KINDS, DRIVER_KINDS, KINDS, NODE_KINDS, Kind, kind
from switchgear.core.catalog.nvlink5 import CODES as NVLINK5
from switchgear.core.catalog.nvlink5 import Decoded, decode_nvlink5
from switchgear.core.catalog.severity import Severity, Verdict
from switchgear.core.catalog.sxids import SXid, sxid
from switchgear.core.catalog.xids import (
    GPU_LOST,
    RECOVERY_ACTION_CHANGED,
    Override,
    Xid,
    judge_xid,
    overrides,
    recovery_action,
    xid,
)

__all__ = [
    "AGENT_KINDS",
    "COLLECTOR_KINDS",
    "DRIVER_KINDS",
    "GPU_LOST",
    "KINDS",
    "NODE_HEARD",
    "NODE_KINDS",
    "NVLINK5",
    "RECOVERY_ACTION_CHANGED",
    "Decoded",
    "End",
    "Kind",
    "Override",
    "SXid",
    "Severity",
    "Until",
    "Verdict",
    "Xid",
    "decode_nvlink5",
    "end_of",
    "judge",
    "judge_xid",
    "kind",
    "overrides",
    "recovery_action",
    "sxid",
    "xid",
]
