"""The XIDs of each GPU since the agent started, for the metrics that dashboards expect."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from switchgear.agent.events import Finding
from switchgear.agent.fault_join import LOST_XID, XID, fault_of
from switchgear.agent.sources.gpu import Value
from switchgear.core.clock import Clock

#: dcgm-exporter's window of `DCGM_EXP_XID_ERRORS_COUNT`.
WINDOW_S = 300.0
#: Of one GPU; a storm beyond it is a storm already.
REMEMBERED_MAX = 1024


class XidHistory:
    """Observes `Events`; any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = dict[str, deque[tuple[float, int]]]()

    def observe(self, finding: Finding) -> None:
        """Keeps the finding when it is an XID, or a loss of the GPU in other words."""
        fault = fault_of(finding)
        if fault is None or (finding.kind != XID and fault.code != LOST_XID):
            return
        with self._lock:
            seen = self._seen.setdefault(fault.pci, deque(maxlen=REMEMBERED_MAX))
            seen.append((self._clock.monotonic_s(), fault.code))

    def values(self, pci: str) -> Iterator[Value]:
        """The last XID of the GPU, 0 for none, and how many came within the window; a code that came before it counts 0."""
        if pci not in self._seen:
            yield "DCGM_FI_DEV_XID_ERRORS", (), 0.0
            return
        since_s = self._clock.monotonic_s() - WINDOW_S
        with self._lock:
            seen = list(self._seen[pci])
        counts = Counter(dict.fromkeys((code for _, code in seen), 0))
        counts.update(code for at_s, code in seen if at_s >= since_s)
        yield "DCGM_FI_DEV_XID_ERRORS", (), float(seen[-1][1])
        window = ("window_size_in_ms", str(round(WINDOW_S * 1000)))
        for code, count in counts.items():
            yield "DCGM_EXP_XID_ERRORS_COUNT", (("xid", str(code)), window), float(count)


@runtime_checkable
class HasXids(Protocol):
    """A driver whose GPUs have XIDs."""

    @property
    def xids(self) -> XidHistory: ...


class XidValues:
    """`GpuValues` of one GPU out of the history: no driver is asked, so they last while its calls hang, and when the GPU is lost."""

    def __init__(self, history: XidHistory, pci: str) -> None:
        self._history = history
        self._pci = pci

    def read(self, index: int, *, slow: bool) -> Iterator[Value]:  # noqa: ARG002 - as all GPUs are read
        """See `GpuValues`; nothing of it changes seldom."""
        return iter(()) if slow else self._history.values(self._pci)
