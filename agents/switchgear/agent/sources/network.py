"""Network interfaces: traffic, link state and speed, under node_exporter's names, and what their links do as events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown
from switchgear.agent.sources.kernel_files import PROCFS, SYSFS, KernelFiles, exists, names, number, read_once, word
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch, pci_address
from switchgear.agent.sources.links import Link

#: More ports than any node has; bounds the dictionary when something creates interfaces without end.
INTERFACES_MAX = 64
# Ends of containers and bridges come and go with pods and would fill the dictionary of an epoch.
_VIRTUAL = re.compile(r"(veth|cali|lxc|cni|flannel|docker|br-|virbr|tap|nodelocaldns|kube-ipvs)")
# Ports of an embedded switch that lead to a virtual or sub-function: up when their user is.
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+")
#: Column of /proc/net/dev behind the name.
_COUNTERS = (
    ("receive_bytes", 0, "bytes"),
    ("receive_packets", 1, ""),
    ("receive_errs", 2, ""),
    ("receive_drop", 3, ""),
    ("transmit_bytes", 8, "bytes"),
    ("transmit_packets", 9, ""),
    ("transmit_errs", 10, ""),
    ("transmit_drop", 11, ""),
)
_COLUMNS = tuple(column for _, column, _ in _COUNTERS)
_TYPE_INFINIBAND = 32
_IFF_UP = 1
# `unknown`: the driver does not tell, and such an interface works (loopback, tunnels, some virtual NICs).
_WORKING = frozenset({"up", "unknown"})


@dataclass(frozen=True, slots=True)
class _Interface:
    """watched: its link is told; InfiniBand's is by the port itself, a virtual function's by its physical one."""

    folder: str
    counters: tuple[SeriesKey, ...]
    up: SeriesKey
    carrier_changes: SeriesKey
    watched: bool
    address: str


class NetworkSource:
    """Traffic, errors and link state of each interface, at every tick.

    every_link: watch virtual interfaces as well, which on a node come and go with containers.
    """

    name = "network"
    period_s = 0.0

    def __init__(
        self, watch: LinkWatch, *, procfs: Path = PROCFS, sysfs: Path = SYSFS, every_link: bool = False
    ) -> None:
        self._watch = watch
        self._table = f"{procfs}/net/dev"
        self._sysfs = sysfs / "class/net"
        self._every_link = every_link
        self._files = KernelFiles()
        self._interfaces = dict[str, _Interface]()

    def sample(self) -> list[Reading]:
        readings, links = list[Reading](), list[Link]()
        rows = self._rows()
        for name, row in rows.items():
            interface = self._interfaces.get(name) or self._found(name)
            values = row.split()
            readings += [
                known(key, int(values[column])) for key, column in zip(interface.counters, _COLUMNS, strict=True)
            ]
            # Read first: a port that counted a down and has its carrier after that is really back.
            downs = self._number(f"{interface.folder}/carrier_down_count") if interface.watched else None
            state = self._state(interface, readings)
            readings.append(self._files.reading(f"{interface.folder}/carrier_changes", interface.carrier_changes))
            if interface.watched:
                links.append(self._link(name, interface, state, downs))
        for name in self._interfaces.keys() - rows.keys():
            self._files.close_under(f"{self._interfaces.pop(name).folder}/")
        self._watch.see(links)
        return readings

    def _rows(self) -> dict[str, str]:
        """Each interface's columns; one read for all of them, where sysfs would need one for each number."""
        lines = self._files.table(self._table).splitlines()[2:]
        rows = dict[str, str]()
        for line in lines:
            name, _, row = line.partition(":")
            name = name.strip()
            if (self._every_link or not _VIRTUAL.match(name)) and len(rows) < INTERFACES_MAX:
                rows[name] = row
        return rows

    def _state(self, interface: _Interface, readings: list[Reading]) -> str:
        """operstate; "" when it cannot be read."""
        try:
            state = self._files.read(f"{interface.folder}/operstate").decode(errors="replace").strip()
        except OSError as error:
            readings.append(unknown(interface.up, f"operstate: {error.strerror}"))
            return ""
        readings.append(known(interface.up, state == "up"))
        return state

    def _link(self, name: str, interface: _Interface, state: str, downs: int | None) -> Link:
        # The kernel tells operstate up to a second after the carrier; until then the port looks as if it had bounced.
        carrier = self._number(f"{interface.folder}/carrier")
        up = state in _WORKING and carrier != 0 if state else None
        return Link(
            name,
            up,
            off=not up and _is_off(interface.folder),
            downs=downs,
            address=interface.address,
            state=state,
        )

    def _number(self, path: str) -> int | None:
        try:
            return int(self._files.read(path))
        except (OSError, ValueError):
            return None

    def _found(self, name: str) -> _Interface:
        folder = f"{self._sysfs}/{name}"
        device = ("device", name)
        self._interfaces[name] = interface = _Interface(
            folder=folder,
            counters=tuple(
                series(f"node_network_{metric}_total", unit, Kind.COUNTER, device) for metric, _, unit in _COUNTERS
            ),
            up=series("node_network_up", "", Kind.GAUGE, device),
            carrier_changes=series("node_network_carrier_changes_total", "", Kind.COUNTER, device),
            watched=self._every_link or (is_physical(folder) and number(f"{folder}/type") != _TYPE_INFINIBAND),
            address=pci_address(f"{folder}/device"),
        )
        return interface


def is_physical(folder: str) -> bool:
    """Whether the interface at this folder of sysfs is a port of this machine: a device, and no virtual function or its other end."""
    return (
        exists(f"{folder}/device")
        and not exists(f"{folder}/device/physfn")
        and not _REPRESENTOR.match(word(f"{folder}/phys_port_name"))
    )


def _is_off(folder: str) -> bool:
    try:
        return not int(read_once(f"{folder}/flags"), 16) & _IFF_UP
    except (OSError, ValueError):
        return False


class InterfaceSource:
    """What changes seldom: speed, MTU, the state of bonds.

    Apart from `NetworkSource`: the speed is asked of the driver under a lock that a wedged driver keeps.
    """

    name = "interface"
    period_s = 15.0

    def __init__(self, speeds: SpeedWatch, sysfs: Path = SYSFS) -> None:
        self._speeds = speeds
        self._sysfs = sysfs / "class/net"

    def sample(self) -> list[Reading]:
        present = [name for name in names(self._sysfs) if not _VIRTUAL.match(name)]
        readings = list[Reading]()
        for name in present[:INTERFACES_MAX]:
            folder = f"{self._sysfs}/{name}"
            if name == "bonding_masters":  # a file
                continue
            speed = _speed(folder, series("node_network_speed_bytes", "bytes", Kind.GAUGE, ("device", name)))
            readings.append(speed)
            # Without a link some drivers tell 0.
            if speed.value and is_physical(folder) and number(f"{folder}/type") != _TYPE_INFINIBAND:
                self._speeds.see(name, pci_address(f"{folder}/device"), speed.value)
            if (mtu := number(f"{folder}/mtu")) is not None:
                readings.append(known(series("node_network_mtu_bytes", "bytes", Kind.GAUGE, ("device", name)), mtu))
            readings += _bond(name, folder)
        return readings


def _speed(folder: str, key: SeriesKey) -> Reading:
    try:
        megabits = int(read_once(f"{folder}/speed"))
    except OSError as error:
        return unknown(key, f"speed: {error.strerror}")
    except ValueError:
        return unknown(key, "speed is not a number")
    # -1 where there is no link or no such notion; in old drivers as an unsigned number.
    return known(key, megabits * 125_000) if 0 <= megabits < 2**31 else unknown(key, "no link speed")


def _bond(name: str, folder: str) -> list[Reading]:
    members = word(f"{folder}/bonding/slaves").split()
    if not members:
        return []
    active = sum(word(f"{folder}/lower_{member}/bonding_slave/mii_status") == "up" for member in members)
    return [
        known(series(f"node_bonding_{what}", "", Kind.GAUGE, ("master", name)), count)
        for what, count in (("slaves", len(members)), ("active", active))
    ]
