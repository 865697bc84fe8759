"""What NVIDIA's drivers and programs write: nvidia.ko, NVSwitch, peermem, fabric manager.

Source of the forms: open-gpu-kernel-modules (kernel_rc.c, osinit.c, osapi.c, nv.c, kernel_gsp.c, kernel_nvlink_gh100.c,
common_nvswitch.h, nvidia-peermem.c).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.kernel_log.classified import Classified, fatal_of
from switchgear.agent.sources.kernel_log.rule import CODE_MAX, PCI, Rule, event, rules
from switchgear.core.catalog import GPU_LOST, NVLINK5, Severity, Verdict, decode_nvlink5, judge_xid, sxid

# A code must follow the device: no digit of a PCI address is ever taken for one.
_XID = re.compile(
    r"(?i:NVRM: {0,4}Xid)(?: {0,4}\( {0,4}(?:(?i:PCI):)?(?P<pci>[0-9a-fA-F:.]{1,20})(?: +GPU-I:(?P<mig>\d{1,5}))?(?: +GPU-CI:\d{1,5})?"
    r" {0,4}\) {0,4})?"
    r": {0,4}(?P<code>\d{1,10})(?!\w)(?P<rest>.*)",
    re.ASCII | re.DOTALL,
)
_ATTRIBUTES = re.compile(
    r", ?pid=(?P<pid>'?<?[\w/]{1,16}>?'?)(?:,? ?name=(?P<process>[^,]{1,64})(?=,|$))?(?=[, ]|$)(?:, ?)?", re.ASCII
)
_NVLINK5 = re.compile(
    r"[, ]*(?P<unit>[A-Z][A-Z0-9_]{1,40}(?:/[A-Z0-9_]{1,40})?) {1,8}(?P<severity>Fatal|Nonfatal|Non-fatal) {1,8}XC ?\d{1,2} {1,8}i ?\d{1,2} {1,8}"
    r"Link {1,4}(?P<link>-?\d{1,4})(?: {1,8}[(\[]0x(?P<intrinfo>[0-9a-fA-F]{1,8})(?: {1,8}0x(?P<status>[0-9a-fA-F]{1,8}))?)?",
    re.ASCII,
)
_LINK = re.compile(r"\blink {1,4}(-?\d{1,4})\b", re.ASCII | re.IGNORECASE)
_CAUSE = re.compile(r"caused by previous Xid (\d{1,10})\b", re.ASCII)


def _xid(match: re.Match[str], driver: str) -> Classified | None:
    code, rest = int(match["code"]), match["rest"]
    if code > CODE_MAX:
        return None
    who = _ATTRIBUTES.match(rest)
    message = rest[who.end() :] if who else rest
    pid = who["pid"] if who and who["pid"].isdecimal() else None
    process = who["process"] if who and who["process"] and not who["process"].startswith("<") else ""
    cause, link = _CAUSE.search(message), _LINK.search(message)
    told = _NVLINK5.match(message) if code in NVLINK5 else None
    decoded = None
    intrinfo = int(told["intrinfo"], 16) if told and told["intrinfo"] else None
    status = int(told["status"], 16) if told and told["status"] else None
    if told and intrinfo is not None:
        decoded = decode_nvlink5(code, told["unit"], intrinfo, status, driver)
    verdict = judge_xid(code, message, decoded.action if decoded else "")
    return Classified(
        "XID",
        verdict,
        fatal_of(verdict),
        code=code,
        pci=normal_pci(match["pci"] or ""),
        mig_gpu_instance=int(match["mig"]) if match["mig"] else None,
        pid=int(pid) if pid else None,
        process=process,
        unit=told["unit"] if told else "",
        severity=told["severity"] if told else "",
        link=int(told["link"]) if told else int(link[1]) if link else None,
        intrinfo=intrinfo,
        error_status=status,
        caused_by=int(cause[1]) if cause else None,
    )


_SXID = re.compile(
    rf"SXid {{0,4}}\((?:PCI:)?(?P<pci>{PCI})\): {{0,4}}(?P<code>\d{{1,10}})(?!\w)"
    r"(?:, ?(?P<severity>Fatal|Non-fatal|Nonfatal)\b)?(?:,? ?Link (?P<link>-?\d{1,4})\b)?",
    re.ASCII,
)


def _sxid(match: re.Match[str], _driver: str) -> Classified | None:
    code = int(match["code"])
    if code > CODE_MAX:
        return None
    known = sxid(code)
    fatal = known.fatal if match["severity"] is None else match["severity"] == "Fatal"
    severity = Severity.FATAL if fatal else Severity.WARNING
    if fatal is False and known.action == "NONE":
        severity = Severity.INFO
    return Classified(
        "SXID",
        Verdict(known.action, severity),
        fatal,
        code=code,
        pci=normal_pci(match["pci"]),
        severity=match["severity"] or "",
        link=int(match["link"]) if match["link"] else None,
    )


def fallen_off_bus(pci: str) -> Classified:
    """A GPU that is gone, told without an XID of its own."""
    return event("GPU_FALLEN_OFF_BUS", code=GPU_LOST, pci=pci)


def _fallen(match: re.Match[str], _driver: str) -> Classified:
    return fallen_off_bus(normal_pci(match["pci"]))


def _manager(match: re.Match[str], _driver: str) -> Classified:
    kind = "FABRICMANAGER_NVSWITCH_NON_FATAL_SXID" if match["non"] else "FABRICMANAGER_NVSWITCH_FATAL_SXID"
    return event(
        kind,
        code=int(match["code"]),
        pci=normal_pci(match["pci"] or ""),
        link=int(match["link"]) if match["link"] else None,
    )


def _reset(match: re.Match[str], _driver: str) -> Classified:
    return event("GPU_RESET_FAILED" if match["success"] == "false" else "GPU_RESET_ACK", device=match["gpu"])


RULES: Sequence[Rule] = (
    *(Rule(word, _XID, _xid, before=16, after=2048) for word in ("Xid", "xid", "XID")),
    Rule("SXid", _SXID, _sxid, before=0),
    Rule(
        "fallen off the bus",
        re.compile(
            rf"NVRM: {{0,8}}(?:GPU (?:at (?:PCI:)?)?(?P<pci>{PCI}):?(?: GPU)? has|The NVIDIA GPU (?P<sentence>{PCI})\b[^\n]{{0,160}}) ?fallen off",
            re.ASCII,
        ),
        lambda match, _: fallen_off_bus(normal_pci(match["pci"] or match["sentence"])),
        before=224,
    ),
    *rules(
        "GSP_HEARTBEAT_TIMEOUT",
        ("eartbeat timed out", r"NVRM: (?:(?P<device>GPU\d{1,3}) )?.{0,80}?[Hh]eartbeat timed out"),
    ),
    *rules(
        "NVLINK_POST_RX_LINK_MASK_FAILED",
        ("postRxDetLinkMask failed", r"NVRM: .{0,90}postRxDetLinkMask failed"),
        ("Failed to update Rx Detect Link mask", r"NVRM: .{0,90}Failed to update Rx Detect Link mask"),
        before=128,
    ),
    *rules(
        "NVIDIA_RM_INIT_FAILED",
        ("RmInitAdapter failed", rf"NVRM: (?:GPU[- ](?P<pci>{PCI}):|.{{0,40}}) ?RmInitAdapter failed"),
        (
            "rm_init_adapter",
            rf"NVRM: (?:GPU[- ](?P<pci>{PCI}):|.{{0,40}}) ?rm_init_adapter ?(?:\(\d{{1,4}}\))? ?failed",
        ),
        ("RmInitAdapter: Cannot", r"NVRM: (?:GPU\d{1,3} )?RmInitAdapter: Cannot initialize"),
    ),
    Rule(
        "GPU reset executed: GPU-",
        re.compile(r"GPU reset executed: (?P<gpu>GPU-[\w-]{1,64})(?:, success: (?P<success>true|false))?", re.ASCII),
        _reset,
        before=0,
        userspace=True,
    ),
    *rules(
        "PEERMEM_INVALID_CONTEXT",
        ("detected invalid context, skipping", r"ERROR detected invalid context, skipping further processing"),
    ),
    Rule(
        "detected NVSwitch ",
        re.compile(
            rf"detected NVSwitch (?P<non>non-)?fatal error (?P<code>\d{{1,9}})\b"
            rf"(?:.{{0,60}}pci bus id (?P<pci>{PCI}))?(?:.{{0,60}} port (?P<link>\d{{1,4}})\b)?",
            re.ASCII,
        ),
        _manager,
        before=0,
        userspace=True,
    ),
    *rules(
        "FABRICMANAGER_NVLINK_FAILURE",
        ("in the multicast team", r"failed to find the (?:member )?GPU handle \d{1,20} in the multicast team"),
        userspace=True,
    ),
    *rules(
        "FABRICMANAGER_TOPOLOGY_MISMATCH",
        ("NVSwitches don't match", r"number of NVSwitches don't match with any supported system topology"),
        userspace=True,
    ),
    *rules(
        "FABRICMANAGER_NOTHING_TO_DO",
        ("NV_WARN_NOTHING_TO_DO", r"failed with error: ?.{0,60}NV_WARN_NOTHING_TO_DO"),
        userspace=True,
    ),
)
