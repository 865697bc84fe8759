"""Which network devices' counters may be read without the kernel complaining.

On adapters whose functions are restricted by their firmware (ConnectX-7 behind NVSwitch among them) each read of a counter makes
mlx5_core log `ACCESS_REG … failed`, a thousand lines an hour (leptonai/gpud 1164, prometheus/node_exporter 3434). So the first
read of a device is one counter alone; if it fails with EINVAL, or the kernel log complains about the device soon after, its
counters are left alone until the machine boots again.
"""

from __future__ import annotations

import json
import threading
from enum import Enum

from switchgear.agent.events import Events, Finding
from switchgear.agent.sources.gpu import normal_pci

SOURCE = "nic_counters"
RESTRICTED = "NIC_COUNTERS_RESTRICTED"
COMPLAINT = "MLX5_ACCESS_REG_FAILED"
REASON = "the kernel complains when counters of this device are read; they are left alone until the next boot"
#: From a read to the line in the log it takes a millisecond, and the log is read at least every half second.
PROBE_S = 5.0
#: Complaints count for so long: of one device they are told once a minute, and ours may be folded into one that another tool caused.
TRIAL_S = 90.0
#: Bounds what is remembered; more than a node has devices.
DEVICES_MAX = 128


class Access(Enum):
    #: Read one counter, then say `probed`.
    PROBE = "probe"
    #: A probe is under way.
    WAIT = "wait"
    OPEN = "open"
    CLOSED = "closed"


class CounterGate:
    """Asked before counters of a device are read. Times are passed in; safe for several threads. What it finds holds until the next boot."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._probing_since_s = dict[str, float]()
        self._open = set[str]()
        self._complained = set[str]()
        self._closed = _restored(events.cursor(SOURCE), events.boot_id)
        events.observe(self._hear)

    def access(self, address: str, now_s: float) -> Access:
        """Whether counters of the device at this PCI address may be read; without an address nothing is known against it."""
        pci = normal_pci(address)
        if not pci:
            return Access.OPEN
        with self._lock:
            if pci in self._closed:
                return Access.CLOSED
            if pci in self._open:
                return Access.OPEN
            since_s = self._probing_since_s.get(pci)
            if since_s is None:
                return Access.PROBE if len(self._open) + len(self._probing_since_s) < DEVICES_MAX else Access.CLOSED
            if pci not in self._complained:
                if now_s - since_s >= TRIAL_S:
                    del self._probing_since_s[pci]
                    self._open.add(pci)
                return Access.WAIT if now_s - since_s < PROBE_S else Access.OPEN
        self.close(address, "the kernel log told of failed register accesses after its first counter was read")
        return Access.CLOSED

    def probed(self, address: str, now_s: float) -> None:
        """A first counter of the device is about to be read."""
        with self._lock:
            self._probing_since_s.setdefault(normal_pci(address), now_s)

    def close(self, address: str, why: str) -> None:
        """From now on the device is left alone; told once."""
        pci = normal_pci(address)
        with self._lock:
            if not pci or pci in self._closed:
                return
            self._closed.add(pci)
            cursor = json.dumps([self._events.boot_id, sorted(self._closed)])
        text = f"counters of the network device at {address} are not read any more: {why}"
        self._events.tell(SOURCE, Finding(RESTRICTED, text, pci=pci), cursor=cursor)

    def _hear(self, finding: Finding) -> None:
        with self._lock:
            # Later complaints come from other tools, which ask for other registers.
            if finding.kind == COMPLAINT and finding.pci in self._probing_since_s:
                self._complained.add(finding.pci)


def _restored(cursor: str, boot_id: str) -> set[str]:
    try:
        boot, closed = json.loads(cursor or '["",[]]')
    except ValueError:
        return set()
    return {str(pci) for pci in closed[:DEVICES_MAX]} if boot == boot_id else set()
