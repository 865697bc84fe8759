"""From the state of a node's network ports, look by look, to the events that matter. Pure: times are passed in.

A port that is down is told once, after a moment, and cleared when it is up; one that goes up and down again and again is told as
flapping, and no more until it has been quiet for a while; one whose device has left the bus is lost. A port that an administrator
took down, or that never was up, is nobody's fault. What was told survives a restart (`state`), so that nothing is told twice and
what is mended meanwhile is cleared.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from switchgear.agent.events import Finding
from switchgear.agent.sources.gpu import normal_pci

DOWN, UP, BOUNCED = "LINK_DOWN", "LINK_UP", "LINK_BOUNCED"
FLAPPING, STABLE = "LINK_FLAPPING", "LINK_STABLE"
LOST, FOUND = "NIC_LOST", "NIC_FOUND"
UNWATCHED = "LINK_UNWATCHED"

#: A port that retrains is back within about a second, and RDMA's retries outlast that; what lasts longer stalls a collective.
#: Peers tell a state at the first look (false alarms at every start) or after 4 minutes, when the job has failed long ago.
DOWN_S = 2.0
#: While it flaps, a port is told as down only when it stays down: this bounds what a bad cable can send.
DOWN_WHILE_FLAPPING_S = 30.0
#: One bounce may be a switch that restarts, two a cable that was put in again; nobody does it three times in ten minutes.
FLAPS = 3
FLAP_WINDOW_S = 600.0
#: Quiet for as long as the window in which it was counted: shorter, and a port that fails every few minutes would come and go.
STABLE_S = 600.0
#: Reloading the driver of eight adapters takes up to half a minute, in which they are not there.
LOST_S = 60.0
#: After a boot drivers are loaded, built perhaps, and links train and wait for their subnet manager: a port of the boot before is missed
#: when it is not there or not up after this long. (NVIDIA/NVSentinel 1701: links that are down after each boot drained nodes.)
BOOT_S = 600.0
#: More ports than any node has; bounds what is remembered and kept.
PORTS_MAX = 128


@dataclass(frozen=True, slots=True)
class Link:
    """One look at a port.

    name: eth2, mlx5_0/1. up: None when it could not be read, which says nothing about the port. off: taken down by an administrator.
    downs: how often it has gone down, where the driver counts that, so that no bounce between two looks is missed.
    address: of its device on the PCI bus, with function; "" when it is on none. state: the driver's words for it.
    """

    name: str
    up: bool | None
    off: bool = False
    downs: int | None = None
    address: str = ""
    state: str = ""


@dataclass(slots=True)
class _Port:
    address: str
    #: Was up at least once.
    known: bool = False
    #: Known from another boot, and not seen up in this one.
    awaited: bool = False
    #: DOWN or LOST when that was told and is not cleared; else "".
    told: str = ""
    flapping: bool = False
    up: bool | None = None
    downs: int | None = None
    down_since_s: float | None = None
    missing_since_s: float | None = None
    #: Downs by the driver's count, and by our own looks.
    counted: int = 0
    watched: int = 0
    recent_downs_s: deque[float] = field(default_factory=lambda: deque(maxlen=FLAPS))
    quiet_since_s: float | None = None


class Links:
    """The ports of one kind.

    boot_id: of the kernel. state: what `state` returned in an earlier life, or ""; damaged, it counts as none.
    """

    def __init__(self, boot_id: str, state: str = "") -> None:
        self._boot_id = boot_id
        self._ports = _restored(state, boot_id)
        #: Counts up whenever what `state` returns may have changed.
        self.revision = 0

    def state(self) -> str:
        """What has to be known in the next life: which ports there are, and what was told of them. At most a few KiB."""
        kept = {name: [port.address, port.told, int(port.flapping)] for name, port in self._ports.items() if port.known}
        return json.dumps([self._boot_id, kept], separators=(",", ":"))

    def missing(self, seen: Sequence[Link]) -> Mapping[str, str]:
        """The addresses of ports that were there and are not among `seen`, by name."""
        names = {link.name for link in seen}
        return {name: port.address for name, port in self._ports.items() if name not in names}

    def look(self, seen: Sequence[Link], gone: Collection[str], now_s: float) -> Iterator[Finding]:
        """What this look tells. Taken one by one, each finding belongs to the `state` at that moment.

        seen: all ports that there are; those beyond PORTS_MAX are left out. gone: names of missing ports whose device has left the
        bus or has no driver; a missing port that is not among them was moved away on purpose. now_s: monotonic.
        """
        for link in seen:
            port = self._ports.get(link.name)
            if port is None:
                if len(self._ports) >= PORTS_MAX:
                    continue
                port = self._ports[link.name] = _Port(link.address)
            yield from self._look(link, port, now_s)
        for name in self.missing(seen):
            yield from self._miss(name, self._ports[name], name in gone, now_s)

    def _look(self, link: Link, port: _Port, now_s: float) -> Iterator[Finding]:
        port.missing_since_s = None
        if port.quiet_since_s is None:
            port.quiet_since_s = now_s
        if port.address != link.address:
            port.address = link.address
            self.revision += 1
        if port.told == LOST:
            port.told = ""
            self.revision += 1
            yield _finding(FOUND, link.name, port, "is there again")
        if link.off or link.up is None:
            # Whatever was told stays so until the port is seen up again.
            port.up, port.downs, port.down_since_s = None, link.downs if link.off else port.downs, None
            return
        fell = self._count_downs(link, port, now_s)
        if link.up:
            yield from self._is_up(link, port, fell, now_s)
        elif port.known:
            yield from self._is_down(link, port, now_s)
        if len(port.recent_downs_s) == FLAPS and not port.flapping and now_s - port.recent_downs_s[0] <= FLAP_WINDOW_S:
            port.flapping = True
            self.revision += 1
            yield _finding(FLAPPING, link.name, port, f"went down {FLAPS} times within {FLAP_WINDOW_S:.0f} s", link)

    def _count_downs(self, link: Link, port: _Port, now_s: float) -> int:
        """How often the port has gone down since the last look, as far as that counts as a fault."""
        before = max(port.counted, port.watched)
        if link.downs is None:  # not counted any more: from here on our looks are all there is
            port.counted = port.watched = before
        if port.known:
            port.watched += port.up is True and link.up is False
            if link.downs is not None and port.downs is not None:
                port.counted += max(0, link.downs - port.downs)
        port.up, port.downs = link.up, link.downs
        # The larger of both: a count may run ahead of the state by a look, stick at its largest value, or not be kept at all.
        fell = max(port.counted, port.watched) - before
        if fell:
            port.recent_downs_s.extend([now_s] * min(fell, FLAPS))
            port.quiet_since_s = now_s
        return fell

    def _is_up(self, link: Link, port: _Port, fell: int, now_s: float) -> Iterator[Finding]:
        down_since_s, port.down_since_s = port.down_since_s, None
        if not port.known:
            port.known = True
            self.revision += 1
        elif port.awaited:
            down_since_s = None
        port.awaited = False
        if port.told == DOWN:
            port.told = ""
            port.quiet_since_s = now_s
            self.revision += 1
            since = f" after {now_s - down_since_s:.0f} s" if down_since_s is not None else ""
            yield _finding(UP, link.name, port, f"is up again{since}", link)
        elif (fell or down_since_s is not None) and not port.flapping:
            yield _finding(BOUNCED, link.name, port, f"went down and was up again within {DOWN_S:.0f} s", link)
        if port.flapping and port.quiet_since_s is not None and now_s - port.quiet_since_s >= STABLE_S:
            port.flapping = False
            port.recent_downs_s.clear()
            self.revision += 1
            yield _finding(STABLE, link.name, port, f"has been up for {STABLE_S:.0f} s", link)

    def _is_down(self, link: Link, port: _Port, now_s: float) -> Iterator[Finding]:
        if port.down_since_s is None:
            port.down_since_s = now_s
        port.quiet_since_s = now_s
        patience_s = BOOT_S if port.awaited else DOWN_WHILE_FLAPPING_S if port.flapping else DOWN_S
        if not port.told and now_s - port.down_since_s >= patience_s:
            port.told = DOWN
            self.revision += 1
            yield _finding(DOWN, link.name, port, f"is down{f' ({link.state})' if link.state else ''}", link)

    def _miss(self, name: str, port: _Port, gone: bool, now_s: float) -> Iterator[Finding]:
        port.up, port.downs, port.down_since_s = None, None, None
        if port.missing_since_s is None:
            port.missing_since_s = now_s
        if port.told == LOST or now_s - port.missing_since_s < (BOOT_S if port.awaited else LOST_S):
            return
        self.revision += 1
        if gone and port.known:
            port.told, port.flapping = LOST, False
            yield _finding(LOST, name, port, "and its device are no longer on the bus")
            return
        del self._ports[name]
        if port.told or port.flapping:
            yield _finding(UNWATCHED, name, port, "was moved or removed; its device is in order")


def _finding(kind: str, name: str, port: _Port, text: str, link: Link | None = None) -> Finding:
    detail = {"link": name}
    if link is not None and link.state:
        detail["state"] = link.state
    return Finding(kind, f"{name} {text}", pci=normal_pci(port.address), detail=detail)


def _restored(state: str, boot_id: str) -> dict[str, _Port]:
    try:
        boot, kept = json.loads(state or '["",{}]')
        return {
            str(name): _Port(
                str(address),
                known=True,
                awaited=boot != boot_id,
                told=told if told in (DOWN, LOST) else "",
                flapping=bool(flapping),
            )
            for name, (address, told, flapping) in list(kept.items())[:PORTS_MAX]
        }
    except (ValueError, TypeError, AttributeError):
        return {}
