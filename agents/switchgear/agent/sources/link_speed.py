"""Ports that came back slower than they were: a link that trained at half its width makes its rank the slowest, and nothing fails.

A port is compared with itself since the boot. Which speed it should have nobody told us: ports of one model may serve different fabrics.
"""

from __future__ import annotations

import json

from switchgear.agent.events import Events, Finding
from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.links import PORTS_MAX

SOURCE = "link_speed"
SLOW, FULL_SPEED = "LINK_SLOW", "LINK_FULL_SPEED"
#: Looks in a row at which it has to be slower: a port that trains tells what it has reached so far.
LOOKS = 2
_BITS_PER_BYTE = 8


class SpeedWatch:
    """Told the speeds of ports that are up, not by several threads at once. What was told is kept; a boot begins anew."""

    def __init__(self, events: Events) -> None:
        self._events = events
        #: Best speed since the boot in bytes a second, and whether it was told as slow.
        self._ports = _restored(events.cursor(SOURCE), events.boot_id)
        self._slower_looks = dict[str, int]()

    def see(self, name: str, address: str, speed_bytes: float) -> None:
        """address: of the port's device on the PCI bus, "" when it is on none."""
        port = self._ports.get(name)
        if port is None and len(self._ports) >= PORTS_MAX:
            return
        best, slow = port or (speed_bytes, False)
        if speed_bytes >= best:
            self._slower_looks.pop(name, None)
            if port != (speed_bytes, False):
                self._ports[name] = (speed_bytes, False)
                if slow:
                    self._tell(FULL_SPEED, f"{name} is back at {_text(speed_bytes)}", name, address)
                else:
                    self._events.move(SOURCE, self._state())
        elif not slow:
            self._slower_looks[name] = self._slower_looks.get(name, 0) + 1
            if self._slower_looks[name] >= LOOKS:
                self._ports[name] = (best, True)
                self._tell(
                    SLOW, f"{name} runs at {_text(speed_bytes)}, and ran at {_text(best)} since the boot", name, address
                )

    def _tell(self, kind: str, text: str, name: str, address: str) -> None:
        finding = Finding(kind, text, pci=normal_pci(address), detail={"link": name})
        self._events.tell(SOURCE, finding, cursor=self._state())

    def _state(self) -> str:
        return json.dumps([self._events.boot_id, self._ports], separators=(",", ":"))


def _text(speed_bytes: float) -> str:
    return f"{speed_bytes * _BITS_PER_BYTE / 1e9:g} Gbit/s"


def _restored(cursor: str, boot_id: str) -> dict[str, tuple[float, bool]]:
    try:
        boot, ports = json.loads(cursor or '["",{}]')
        return {name: (float(best), bool(slow)) for name, (best, slow) in ports.items()} if boot == boot_id else {}
    except (ValueError, TypeError, AttributeError):
        return {}
