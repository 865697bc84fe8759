"""InfiniBand and RoCE ports from sysfs, under node_exporter's names, and what their links do as events."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown
from switchgear.agent.sources.counter_gate import REASON, Access, CounterGate
from switchgear.agent.sources.infiniband_names import COUNTERS, FOLDERS, LIFESPAN, TROUBLE, scale
from switchgear.agent.sources.kernel_files import SYSFS, KernelFiles, exists, names, read_once, word
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch, pci_address
from switchgear.agent.sources.links import Link
from switchgear.core.clock import Clock

#: More than a node has; bounds the dictionary when virtual functions are made by the hundred.
PORTS_MAX = 32
PORTS_FOLDER = "ports"
_ACTIVE, _DEFERRED = 4, 5
_DISABLED = 3
_LINK_UP = "5:"
#: Counts of old adapters end here and do not wrap.
_SATURATED = 255
_BYTES_PER_GIGABIT = 125_000_000
_LINK_DOWNED = TROUBLE.index("link_downed")
#: Between searches for ports as long as there are none.
SEARCH_S = 15.0
# Looks from one search for new ports to the next; one that is gone is noticed at once.
_SEARCH_EVERY = 15


@dataclass(frozen=True, slots=True)
class Port:
    """folder: in sysfs, without a slash at its end. watched: its link is told, and not that of a network interface over it."""

    device: str
    number: str
    folder: str
    address: str
    watched: bool

    @property
    def name(self) -> str:
        return f"{self.device}/{self.number}"

    def key(self, metric: str, unit: str = "", kind: Kind = Kind.COUNTER) -> SeriesKey:
        return series(f"node_infiniband_{metric}", unit, kind, ("device", self.device), ("port", self.number))


def ports(sysfs: Path) -> Iterator[Port]:
    """All ports of all devices, at most PORTS_MAX; those of virtual functions last."""
    root = sysfs / "class/infiniband"
    found = 0
    for virtual, device in sorted((exists(root / device / "device/physfn"), device) for device in names(root)):
        folder = root / device / PORTS_FOLDER
        address = pci_address(f"{root}/{device}/device")
        # A virtual function's link is told by its physical one. RoCE, iWARP: that of the interface over it by the network source, where
        # the interface is in our network namespace.
        interfaces = names(root / device / "device" / "net")
        for number in names(folder):
            if found == PORTS_MAX:
                return
            found += 1
            told_here = word(folder / number / "link_layer") == "InfiniBand" or not interfaces
            yield Port(device, number, f"{folder}/{number}", address, watched=told_here and not virtual)


class _Watched:
    """A port with the paths and keys of what is read of it at every tick, made once."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.state = f"{port.folder}/state", port.key("state_id", kind=Kind.GAUGE)
        self.physical = f"{port.folder}/phys_state", port.key("physical_state_id", kind=Kind.GAUGE)
        self.trouble = [(f"{port.folder}/counters/{file}", port.key(COUNTERS[file])) for file in TROUBLE]


class InfinibandSource:
    """State of each port and the counters that tell of trouble, at every tick."""

    name = "infiniband"

    def __init__(self, watch: LinkWatch, gate: CounterGate, clock: Clock, sysfs: Path = SYSFS) -> None:
        self._watch = watch
        self._gate = gate
        self._clock = clock
        self._sysfs = sysfs
        self._files = KernelFiles()
        self._watched = list[_Watched]()
        self._looks_to_search = 0

    @property
    def period_s(self) -> float:
        """At every tick; seldom as long as there are no ports, whose driver may be loaded later."""
        return 0.0 if self._watched else SEARCH_S

    def sample(self) -> list[Reading]:
        self._looks_to_search -= 1
        if self._looks_to_search < 0 or not self._watched:
            self._search()
        readings, links = list[Reading](), list[Link]()
        now_s = self._clock.monotonic_s()
        for watched in self._watched:
            state = self._state(watched.state, readings)
            physical = self._state(watched.physical, readings)
            downs = self._trouble(watched, now_s, readings)
            if watched.port.watched:
                links.append(_link(watched.port, state, physical, downs))
            if state is None:
                self._looks_to_search = 0  # its device may be gone
        self._watch.see(links)
        return readings

    def _search(self) -> None:
        found = {watched.port: watched for watched in self._watched}
        present = list(ports(self._sysfs))
        for port in found.keys() - set(present):
            self._files.close_under(f"{port.folder}/")
        self._watched = [found.get(port) or _Watched(port) for port in present]
        self._looks_to_search = _SEARCH_EVERY

    def _state(self, file: tuple[str, SeriesKey], readings: list[Reading]) -> tuple[int, str] | None:
        """`4: ACTIVE` as number and word; None when it cannot be read."""
        path, key = file
        try:
            number, _, name = self._files.read(path).decode(errors="replace").partition(":")
            state = int(number), name.strip()
        except OSError as error:
            readings.append(unknown(key, f"{path.rpartition('/')[2]}: {error.strerror}"))
        except ValueError:
            readings.append(unknown(key, f"{path.rpartition('/')[2]} is not a state"))
        else:
            readings.append(known(key, state[0]))
            return state
        return None

    def _trouble(self, watched: _Watched, now_s: float, readings: list[Reading]) -> int | None:
        """Reads the counters that tell of trouble, as far as the device may be asked; how often the link went down, if that counts."""
        address = watched.port.address
        access = self._gate.access(address, now_s)
        if access is Access.CLOSED:
            readings += [unknown(key, REASON) for _, key in watched.trouble]
        if access in (Access.CLOSED, Access.WAIT):
            return None
        if access is Access.PROBE:
            self._gate.probed(address, now_s)
        downs = None
        for path, key in watched.trouble[:1] if access is Access.PROBE else watched.trouble:
            try:
                value = int(self._files.read(path))
            except OSError as error:
                if error.errno == errno.EINVAL:
                    self._gate.close(address, f"reading {path.rpartition('/')[2]} failed with EINVAL")
                    return None
            except ValueError:  # `N/A (no PMA)`
                pass
            else:
                readings.append(known(key, value))
                if key is watched.trouble[_LINK_DOWNED][1] and value != _SATURATED:
                    downs = value
        return downs


def _link(port: Port, state: tuple[int, str] | None, physical: tuple[int, str] | None, downs: int | None) -> Link:
    return Link(
        port.name,
        None if state is None else state[0] in (_ACTIVE, _DEFERRED),
        off=physical is not None and physical[0] == _DISABLED,
        downs=downs,
        address=port.address,
        state=", ".join(part[1] for part in (state, physical) if part is not None),
    )


class InfinibandCounterSource:
    """Rate, and all other counters of each port, seldom: on one adapter they are sixty questions to its firmware."""

    name = "infiniband-counters"
    period_s = 15.0

    def __init__(self, speeds: SpeedWatch, gate: CounterGate, clock: Clock, sysfs: Path = SYSFS) -> None:
        self._speeds = speeds
        self._gate = gate
        self._clock = clock
        self._sysfs = sysfs
        #: Path, series and scale of each counter of a port.
        self._layouts = dict[Port, list[tuple[str, SeriesKey, float]]]()

    def sample(self) -> list[Reading]:
        readings, devices = list[Reading](), set[str]()
        present = list(ports(self._sysfs))
        self._layouts = {port: layout for port, layout in self._layouts.items() if port in present}
        for port in present:
            if port.device not in devices:
                devices.add(port.device)
                readings.append(self._info(port.device))
            rate = _rate(port)
            readings.append(rate)
            # Without a link the rate is that of the slowest kind.
            if port.watched and rate.value is not None and word(f"{port.folder}/phys_state").startswith(_LINK_UP):
                self._speeds.see(port.name, port.address, rate.value)
            if self._gate.access(port.address, self._clock.monotonic_s()) is Access.OPEN:
                readings += self._counters(port)
        return readings

    def _info(self, device: str) -> Reading:
        folder = self._sysfs / "class/infiniband" / device
        labels = (
            ("device", device),
            ("board_id", word(folder / "board_id")),
            ("firmware_version", word(folder / "fw_ver")),
            ("hca_type", word(folder / "hca_type")),
        )
        return known(series("node_infiniband_info", "", Kind.GAUGE, *labels), 1)

    def _counters(self, port: Port) -> Iterator[Reading]:
        layout = self._layouts.get(port)
        if layout is None:
            layout = self._layouts[port] = list(_layout(port))
        for path, key, times in layout:
            try:
                yield known(key, int(read_once(path)) * times)
            except (OSError, ValueError):  # not supported by this adapter
                continue


def _layout(port: Port) -> Iterator[tuple[str, SeriesKey, float]]:
    for folder, metrics in FOLDERS:
        for file in names(f"{port.folder}/{folder}"):
            metric = metrics.get(file)
            if metric is not None and file not in TROUBLE:
                kind = Kind.GAUGE if file == LIFESPAN else Kind.COUNTER
                unit = "bytes" if "_bytes_" in metric else "seconds" if file == LIFESPAN else ""
                yield f"{port.folder}/{folder}/{file}", port.key(metric, unit, kind), scale(file)


def _rate(port: Port) -> Reading:
    key = port.key("rate_bytes_per_second", "bytes", Kind.GAUGE)
    text = word(f"{port.folder}/rate")
    try:
        return known(key, float(text.partition(" ")[0]) * _BYTES_PER_GIGABIT)  # `400 Gb/sec (4X NDR)`
    except ValueError:
        return unknown(key, "rate cannot be read")
