"""What an event asks for, whichever source told it. The one place for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from switchgear.core.catalog.kinds import kind as kind_of
from switchgear.core.catalog.severity import Severity, Verdict
from switchgear.core.catalog.xids import judge_xid, recovery_action_named

#: As agents before 0.2 called a fatal SXid.
_OLD_KINDS = {"SXID_FATAL": ("SXID", Severity.FATAL)}


def judge(kind: str, code: int | None, text: str, detail: Mapping[str, str]) -> Verdict | None:
    """None for an event that is not known here, or an XID without a code.

    detail: of the event; `level` says that it is worse or better than its kind mostly is, `action` what the agent decoded.
    """
    if kind == "XID":
        return None if code is None else judge_xid(code, text, detail.get("action", ""))
    if kind == "GPU_RECOVERY_ACTION" and (asked := recovery_action_named(detail.get("action", ""))):
        return asked
    kind, level = _OLD_KINDS.get(kind, (kind, None))
    known = kind_of(kind)
    if known is None:
        return None
    if level is None and detail.get("level") in Severity.__members__:
        level = Severity(detail["level"])
    verdict = replace(known.verdict, severity=level) if level is not None else known.verdict
    # The table of SXids knows better what a code asks for than the table of kinds.
    return replace(verdict, action=detail["action"]) if kind == "SXID" and detail.get("action") else verdict
