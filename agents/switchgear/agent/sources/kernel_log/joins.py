"""Which event lines belong to the block that is open, and what they make of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.prefix import Line
from switchgear.core.catalog import Severity

#: Kinds that the lines after them may make a worse one, or complete.
HELD = frozenset(
    {
        *("OOM_START", "TASK_BLOCKED_TOO_LONG", "CPU_SOFT_LOCKUP", "CPU_HARD_LOCKUP", "RCU_STALL"),
        *("KERNEL_BUG", "KERNEL_OOPS", "KERNEL_PANIC", "GHES_HARDWARE_ERROR"),
    }
)
#: Lines without an event of their own that a block survives; the list of tasks in the dump of an OOM kill is long.
_QUIET_LINES_MAX: Mapping[str, int] = {
    "OOM_START": 8000,
    "TASK_BLOCKED_TOO_LONG": 200,
    "CPU_SOFT_LOCKUP": 200,
    "CPU_HARD_LOCKUP": 200,
    "RCU_STALL": 200,
    "KERNEL_BUG": 200,
    "KERNEL_OOPS": 200,
    "KERNEL_PANIC": 200,
    "GHES_HARDWARE_ERROR": 32,
}
_FEW_LINES = 16
#: Lines that only stand in the dump of a task, a processor or the memory.
DUMP = re.compile(
    r"Call [Tt]race|<TASK>|Hardware name: |CPU: \d|NMI backtrace|Not tainted|Tainted: |Task in |cpuset=|Mem-Info|memory: usage|state:D "
    r"|Workqueue: |\+0x[0-9a-f]+/0x"
)
_TROUBLE = frozenset(
    {
        *("KERNEL_PANIC", "KERNEL_BUG", "KERNEL_OOPS", "TASK_BLOCKED_TOO_LONG", "CPU_SOFT_LOCKUP", "CPU_HARD_LOCKUP"),
        *("RCU_STALL", "NFS_WRITEBACK_HANG"),
    }
)
# Recent kernels name the victim before they kill it; of older ones only the last line is sure, they may take a child instead.
_VICTIM = re.compile(r"Killed process |oom-kill:constraint=.*,pid=\d")
#: An oops has a number once. What it says of it behind a head that has none: the exception of a BUG, the access of a bad address.
_NUMBERED = re.compile(r"\[#\d{1,6}\]")
_BUG_NUMBERED = re.compile(r"invalid op(?:code|erand)|Oops - (?:BUG|Undefined)|sig: 5|Kernel BUG")
_ACCESS_NUMBERED = re.compile(r"Oops: (?:Oops: )?[0-9a-fA-F]{4,16} |Oops: Kernel access|Oops \[#")
#: What begins the report of a machine check.
_CHECK_HEAD = re.compile(r"CPU ?\d{1,5}: Machine Check|Machine Check: CPU|Uncorrected error|Machine Check Exception: ")
_CHECK_END = re.compile(r"Machine check: |Run the above")
_CHECKS_LOGGED = "achine check events logged"


class Open:
    """The block that is open. form, at_s: of its first line. quiet_lines: since its last event line. dumped: a dump has begun.

    waits: whether the next event line may say what it is.
    """

    __slots__ = ("at_s", "dumped", "form", "invoked", "killed", "lead", "numbered", "quiet_lines", "text", "waits")

    def __init__(self, lead: Classified, line: Line, *, in_trace: bool, waits: bool = False) -> None:
        self.lead = lead
        self.waits = waits
        self.form = line.form
        self.at_s = line.at_s
        self.text = line.text
        self.quiet_lines = 0
        self.dumped = in_trace
        #: The task that asked for memory, of an OOM kill that began with that line.
        self.invoked = lead.process if lead.kind == "OOM_START" else ""
        #: Whether its victim is known for sure.
        self.killed = _VICTIM.search(line.text, 0, 1024) is not None
        self.numbered = lead.kind == "KERNEL_OOPS" and _NUMBERED.search(line.text, 0, 1024) is not None

    @property
    def quiet_lines_max(self) -> int:
        if self.invoked and not self.killed:
            return _QUIET_LINES_MAX["OOM_START"]
        return _QUIET_LINES_MAX.get(self.lead.kind, _FEW_LINES)

    @property
    def complete(self) -> bool:
        """Whether no line to come can change what the event is."""
        if self.lead.kind == "KERNEL_PANIC":
            return self.lead.pid is not None
        if self.lead.kind == "GHES_HARDWARE_ERROR":
            return self.lead.severity != ""
        if self.lead.kind == "OOM":
            return self.killed
        return self.lead.kind not in HELD and not self.waits


@dataclass(frozen=True, slots=True)
class _Next:
    """An event line after the open block, of the same moment. adjacent: nothing stood between. stamped: by clocks, not by place."""

    opened: Open
    lead: Classified
    found: Classified
    text: str
    in_trace: bool

    @property
    def adjacent(self) -> bool:
        return self.opened.quiet_lines == 0

    @property
    def stamped(self) -> bool:
        return self.opened.at_s is not None

    @property
    def dumped(self) -> bool:
        """Lines without stamps are of one report when a dump stands between them."""
        return self.stamped or self.opened.dumped

    @property
    def one_report(self) -> bool:
        """Lines without stamps that directly follow each other may be of two reports, from which someone has picked the heads."""
        return self.stamped or not self.adjacent


def join(opened: Open, line: Line, found: Classified, *, in_trace: bool) -> Classified | None:
    """The event of the block with this line in it, or None when the line begins another event."""
    rule = _JOINS.get(opened.lead.kind)
    return rule(_Next(opened, opened.lead, found, line.text, in_trace)) if rule is not None else None


def _oom_start(at: _Next) -> Classified | None:
    if at.found.kind == "OOM":
        if not (at.dumped or at.adjacent):
            return None
        at.opened.killed = _VICTIM.search(at.text, 0, 1024) is not None
        return at.found
    # While one kill is under way others ask for memory too.
    return at.lead if at.found.kind == "OOM_START" and at.opened.dumped else None


def _oom(at: _Next) -> Classified | None:
    if at.found.kind == "OOM_START":
        # The same group runs into its limit again at once.
        if not (at.opened.dumped and at.found.process == at.opened.invoked):
            return None
        at.opened.killed = False
        return at.lead
    if at.found.kind != "OOM":
        return None
    # What is announced for a task may befall its child; apart from that the victim tells whether it is the same kill.
    announced = at.opened.invoked != "" or ("sacrifice child" in at.opened.text and at.stamped and at.adjacent)
    under_way = announced and not at.opened.killed
    if not under_way and at.lead.pid is not None and at.found.pid != at.lead.pid:
        return None
    sure = _VICTIM.search(at.text, 0, 1024) is not None
    better = at.lead.pid is None or (sure and not at.opened.killed)
    at.opened.killed |= sure
    return at.found if better else at.lead


def _trouble(at: _Next) -> Classified | None:
    """A task or processor that hangs: its stack may name a file system, and the kernel may panic about it."""
    if at.found.kind == "KERNEL_PANIC" and at.dumped:
        return at.found
    if at.found.kind == "NFS_WRITEBACK_HANG" and not at.adjacent:
        return at.lead
    return at.lead if at.lead.kind == at.found.kind == "RCU_STALL" and at.one_report else None


def _oops(at: _Next) -> Classified | None:
    if at.found.kind != "KERNEL_OOPS":
        return _trouble(at)
    numbered = _NUMBERED.search(at.text, 0, 1024) is not None
    follows = _BUG_NUMBERED if at.lead.kind == "KERNEL_BUG" else _ACCESS_NUMBERED
    if at.opened.numbered or not (at.stamped or (numbered and follows.search(at.text, 0, 1024))):
        return None
    at.opened.numbered = numbered
    return at.lead


def _panic(at: _Next) -> Classified | None:
    if at.found.kind == "KERNEL_PANIC" and "end Kernel panic" not in at.text:
        return None
    return at.lead if at.found.kind in _TROUBLE and at.dumped else None


def _nfs(at: _Next) -> Classified | None:
    return at.lead if at.found.kind == at.lead.kind and (at.stamped or at.in_trace) else None


_WORST_LAST = (Severity.INFO, Severity.WARNING, Severity.FATAL)


def _ghes(at: _Next) -> Classified | None:
    if at.found.kind != at.lead.kind or at.found.device != at.lead.device or "Hardware error from APEI" in at.text:
        return None
    if at.found.severity:
        return at.found if not at.lead.severity else None
    return at.lead


def _mce(at: _Next) -> Classified | None:
    if at.found.kind != at.lead.kind or not at.adjacent:
        return None
    if not at.stamped:
        begun = any(expression.search(at.opened.text, 0, 256) for expression in (_CHECK_HEAD, _CHECK_END))
        if _CHECKS_LOGGED in at.text or (begun and _CHECK_HEAD.search(at.text, 0, 256)):
            return None
    return max(at.lead, at.found, key=lambda one: _WORST_LAST.index(one.verdict.severity))


def _sxid(at: _Next) -> Classified | None:
    same = (at.found.kind, at.found.code, at.found.pci) == (at.lead.kind, at.lead.code, at.lead.pci)
    # Lines of raw detail say neither how bad it is nor which link.
    return at.lead if same and at.adjacent and not at.found.severity else None


def _lost_gpu(at: _Next) -> Classified | None:
    kinds = {at.lead.kind, at.found.kind}
    if kinds != {"XID", "GPU_FALLEN_OFF_BUS"} or at.lead.code != at.found.code or at.lead.pci != at.found.pci:
        return None
    waited, at.opened.waits = at.opened.waits, False
    return at.found if waited else at.lead


def _heartbeat(at: _Next) -> Classified | None:
    """Who counts the beats says it, then who waits for an answer."""
    same = (at.found.kind, at.found.device) == (at.lead.kind, at.lead.device)
    return at.lead if same and (at.stamped or " heartbeat timed out" in at.text) else None


_INIT_STEPS = ("Cannot initialize", "RmInitAdapter failed", "rm_init_adapter")


def _init(at: _Next) -> Classified | None:
    same = at.found.kind == at.lead.kind and at.lead.pci in ("", at.found.pci)
    return at.lead if same and _init_step(at.text) > _init_step(at.opened.text) else None


def _init_step(text: str) -> int:
    return next((step for step, words in enumerate(_INIT_STEPS) if words in text), 0)


def _aer(at: _Next) -> Classified | None:
    same = at.found.kind == at.lead.kind and at.found.pci == at.lead.pci
    header = "PCIe Bus Error" not in at.opened.text
    return (
        replace(at.lead, verdict=at.found.verdict, fatal=at.found.fatal)
        if same and header and "PCIe Bus Error" in at.text
        else None
    )


def _same_device(at: _Next) -> Classified | None:
    same = (at.found.kind, at.found.device, at.found.pci) == (at.lead.kind, at.lead.device, at.lead.pci)
    again = at.found.kind == "MEMORY_FAILURE" and at.text != at.opened.text
    return at.lead if same and (at.one_report or again or ": SError: {" in at.text) else None


def _ras(at: _Next) -> Classified | None:
    """How many there were anew, then how many there are."""
    same = at.found.kind == at.lead.kind and at.found.pci == at.lead.pci
    return at.lead if same and " detected in total in " in at.text else None


_JOINS: Mapping[str, Callable[[_Next], Classified | None]] = {
    "OOM_START": _oom_start,
    "OOM": _oom,
    "TASK_BLOCKED_TOO_LONG": _trouble,
    "CPU_SOFT_LOCKUP": _trouble,
    "CPU_HARD_LOCKUP": _trouble,
    "RCU_STALL": _trouble,
    "KERNEL_BUG": _oops,
    "KERNEL_OOPS": _oops,
    "KERNEL_PANIC": _panic,
    "NFS_WRITEBACK_HANG": _nfs,
    "GHES_HARDWARE_ERROR": _ghes,
    "MCE": _mce,
    "SXID": _sxid,
    "XID": _lost_gpu,
    "GPU_FALLEN_OFF_BUS": _lost_gpu,
    "GSP_HEARTBEAT_TIMEOUT": _heartbeat,
    "NVIDIA_RM_INIT_FAILED": _init,
    "PCIE_AER_CORRECTED": _aer,
    "PCIE_AER_UNCORRECTABLE": _aer,
    "MEMORY_FAILURE": _same_device,
    "SATA_LINK_ERROR": _same_device,
    "XFS_ERROR": _same_device,
    "AMDGPU_RESET": _same_device,
    "AMDGPU_RAS_UNCORRECTABLE": _ras,
}
