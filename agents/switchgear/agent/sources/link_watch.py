"""Carries what ports do into events, and what was told over a restart."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from switchgear.agent.events import Events, Finding
from switchgear.agent.sources.kernel_files import SYSFS
from switchgear.agent.sources.links import Link, Links
from switchgear.core.clock import Clock

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NOTHING = b"\xff\xff\xff\xff"
#: What the kernel says of a port by its name at once, whoever took it down and however soon it is back.
_SAID_BY_THE_KERNEL = frozenset({"NET_LINK_DOWN", "NET_LINK_LOST_CARRIER", "IB_LINK_LOST_CARRIER"})


class LinkWatch:
    """Watches the ports of one kind. source: under which they are told; it is given the ports at every tick, not by several threads at once.

    What others tell of the links of these ports is no news: it would be the same fault once more, and nothing would clear it.
    """

    def __init__(self, source: str, events: Events, clock: Clock, sysfs: Path = SYSFS) -> None:
        self._source = source
        self._events = events
        self._clock = clock
        self._sysfs = sysfs
        self._links = Links(events.boot_id, events.cursor(source))
        self._watched = frozenset[str]()
        events.judge(self._is_news)

    def see(self, seen: Sequence[Link]) -> None:
        """`seen`: all ports of this kind that there are now."""
        links = self._links
        self._watched = frozenset(link.name for link in seen)
        revision = links.revision
        gone = {
            name for name, address in links.missing(seen).items() if address and device_is_gone(address, self._sysfs)
        }
        for finding in links.look(seen, gone, self._clock.monotonic_s()):
            self._events.tell(self._source, finding, cursor=links.state())
            revision = links.revision
        if links.revision != revision:
            self._events.move(self._source, links.state())

    def _is_news(self, source: str, finding: Finding, time_unix_ns: int) -> bool:  # noqa: ARG002 - a judge's arguments
        return finding.kind not in _SAID_BY_THE_KERNEL or finding.detail.get("device") not in self._watched


def pci_address(device: str) -> str:
    """The address, with function, of the PCI device behind a `device` link of sysfs; "" when it is on no PCI bus."""
    parts = os.path.realpath(device).split("/")
    return next((part for part in reversed(parts) if _ADDRESS.fullmatch(part)), "")


def device_is_gone(address: str, sysfs: Path = SYSFS) -> bool:
    """Whether the PCI device has left the bus, answers with nothing but ones, or has lost its driver."""
    device = sysfs / "bus/pci/devices" / address
    if not (device / "driver").exists():
        return True
    try:
        return (device / "config").read_bytes()[:4] == _NOTHING
    except OSError:
        return False
