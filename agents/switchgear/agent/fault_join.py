"""One fault that several sources see is one event: the driver's own events joined with the kernel log's.

The kernel log is the main source, for it has the text; NVML names critical XIDs only, by number. A fault is the same when GPU, code
and time agree. What falls off the bus has XID 79 in all its forms: the XID, the sentence without one, the driver's return code.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from switchgear.agent.events import Events, Finding
from switchgear.core.catalog import judge
from switchgear.core.clock import Clock

DRIVER = "driver"
XID = "XID"
GPU_LOST = "GPU_LOST"
GPU_RETURNED = "GPU_RETURNED"
LOST_XID, RECOVERY_XID = 79, 154
#: How long a driver's event waits for the line of the log; the log is read within a tenth of a second.
WAIT_S = 2.0
#: How far apart the two may be.
WINDOW_S = 5.0
#: That a GPU is lost is noticed by the next call about it, and a call may hang for minutes before it says so.
LOST_WINDOW_S = 600.0
#: Of faults that are remembered; more than a node's GPUs have in ten minutes unless all of them fail.
REMEMBERED_MAX = 1024

#: XID that the kernel log has for what the driver names in its own way (NVIDIA's XID catalog).
XID_OF = {
    "GPU_FALLEN_OFF_BUS": LOST_XID,
    GPU_LOST: LOST_XID,
    "ECC_DOUBLE_BIT": 48,
    "DRAM_RETIREMENT": 63,
    "DRAM_RETIREMENT_FAILED": 64,
    "ECC_SINGLE_BIT_STORM": 92,
    "GPU_POISON_NON_FATAL": 94,
    "GPU_POISON_FATAL": 95,
    "GPU_RECOVERY_ACTION": RECOVERY_XID,
}


class Fault(NamedTuple):
    """pci: of the GPU. asked: what the driver wants done about it, of `RECOVERY_XID`: when that changes it is another fault."""

    pci: str
    code: int
    asked: str = ""


def fault_of(finding: Finding) -> Fault | None:
    """GPU and XID, when the finding is a fault of a GPU that both sources can see."""
    code = finding.code if finding.kind == XID else XID_OF.get(finding.kind)
    if code is None or not finding.pci:
        return None
    verdict = judge(finding.kind, finding.code, finding.text, finding.detail) if code == RECOVERY_XID else None
    return Fault(finding.pci, code, verdict.action if verdict is not None else "")


@dataclass(frozen=True, slots=True)
class _Waiting:
    finding: Finding
    since_s: float


class DriverJoin:
    """Decides which findings are told. Pure: times are passed in, in seconds of one clock.

    wait_s: how long the driver's events wait for the log's; 0 where there is no log.
    """

    def __init__(self, *, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._waiting = dict[Fault, _Waiting]()
        self._from_kernel = dict[Fault, float]()
        self._alone = dict[Fault, float]()

    def from_kernel(self, finding: Finding, at_s: float) -> bool:
        """Whether to tell it: yes, unless the driver's event of the same fault was told already. at_s: when it happened."""
        fault = fault_of(finding)
        if fault is None:
            return True
        waiting = self._waiting.get(fault)
        if waiting is not None and abs(at_s - waiting.since_s) <= _window_s(fault):
            del self._waiting[fault]
        told_s = self._alone.get(fault)
        if told_s is not None and abs(at_s - told_s) <= _window_s(fault):
            del self._alone[fault]
            _remember(self._from_kernel, fault, at_s)
            return False
        _remember(self._from_kernel, fault, at_s)
        return True

    def from_driver(self, finding: Finding, at_s: float) -> None:
        """It is told by `due`, unless the kernel log has the same fault."""
        fault = fault_of(finding)
        if fault is None:
            fault = Fault(f"{finding.kind} {finding.pci} {finding.gpu}", 0)
        for told in (self._from_kernel, self._alone):
            if fault in told and abs(at_s - told[fault]) <= _window_s(fault):
                return
        if len(self._waiting) < REMEMBERED_MAX:
            self._waiting.setdefault(fault, _Waiting(finding, at_s))

    def due(self, now_s: float) -> Iterator[tuple[Finding, float]]:
        """What the driver said and the log did not, with the time at which it said so."""
        for fault, waiting in list(self._waiting.items()):
            # The clock may have been set back meanwhile.
            if not 0 <= now_s - waiting.since_s < self._wait_s or not fault.code:
                del self._waiting[fault]
                _remember(self._alone, fault, waiting.since_s)
                yield waiting.finding, waiting.since_s

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def mended(self, pci: str) -> None:
        """The GPU answers again: losing it once more is another fault."""
        for told in (self._from_kernel, self._alone):
            told.pop(Fault(pci, LOST_XID), None)


def _window_s(fault: Fault) -> float:
    return LOST_WINDOW_S if fault.code == LOST_XID else WINDOW_S


def _remember(told: dict[Fault, float], fault: Fault, at_s: float) -> None:
    told.pop(fault, None)  # so that the oldest is the first
    if len(told) >= REMEMBERED_MAX:
        del told[next(iter(told))]
    told[fault] = at_s


class FaultJoin:
    """`DriverJoin` as the judge of `Events`: the driver's findings come in here, all others pass by.

    log_source: name of the kernel log's source. kernel_log: whether there is one to wait for. Any thread.
    """

    def __init__(self, events: Events, clock: Clock, *, log_source: str, kernel_log: bool) -> None:
        self._events = events
        self._clock = clock
        self._log_source = log_source
        self._join = DriverJoin(wait_s=WAIT_S if kernel_log else 0.0)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        events.judge(self._is_news)

    def tell(self, finding: Finding) -> None:
        """Something that the driver says; told as an event unless the kernel log has it."""
        with self._lock:
            if finding.kind == GPU_RETURNED:
                self._join.mended(finding.pci)
            self._join.from_driver(finding, self._clock.unix_ns() / 1e9)
            if self._timer is None and self._join.waiting:
                self._wake_later()
        self._tell_due()

    def close(self) -> None:
        """Tells what waits: an event that comes twice is better than one that is lost."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._tell_due(WAIT_S)

    def _is_news(self, source: str, finding: Finding, time_unix_ns: int) -> bool:
        if source != self._log_source:
            return True
        with self._lock:
            return self._join.from_kernel(finding, time_unix_ns / 1e9)

    def _tell_due(self, ahead_s: float = 0.0) -> None:
        with self._lock:
            due = list(self._join.due(self._clock.unix_ns() / 1e9 + ahead_s))
        for finding, at_s in due:
            self._events.tell(DRIVER, finding, time_unix_ns=round(at_s * 1e9))

    def _wake_later(self) -> None:
        """A timer only while something waits: faults are rare."""
        self._timer = threading.Timer(WAIT_S / 4, self._on_time)
        self._timer.daemon = True
        self._timer.start()

    def _on_time(self) -> None:
        self._tell_due()
        with self._lock:
            self._timer = None
            if self._join.waiting:
                self._wake_later()
