"""Statistics that a network driver keeps beyond the common ones, asked as ethtool does, under node_exporter's names."""

from __future__ import annotations

import array
import errno
import fcntl
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown
from switchgear.agent.sources.counter_gate import Access, CounterGate
from switchgear.agent.sources.kernel_files import SYSFS, names
from switchgear.agent.sources.link_watch import pci_address
from switchgear.agent.sources.network import INTERFACES_MAX, is_physical
from switchgear.core.clock import Clock

#: Statistics of one interface that are kept; the dictionary of an epoch holds 4,096 series for the whole node.
STATISTICS_MAX = 64
#: More than any driver has; mlx5 has some 4,000 with a queue for each of 192 CPUs.
_DRIVER_STATISTICS_MAX = 16384
# Errors, drops, congestion and flow control, and the port's own octets, which hold RDMA as well; not the ones of a single queue.
_WANTED = re.compile(
    r"(?<![a-z])err|error|fail|drop|discard|crc|pause|ecn|cnp|cong|symbol|corrected|fault|timeout|retrans|link_down|out_of_buffer|stall|"
    r"overrun|overflow|missed|jabber|fragments|oversize|undersize|full|reset|module|_bytes_phy$|_packets_phy$"
)
# Of each of eight priorities; how long a pause was and how often it began says less than how many there were.
_PRIORITY = re.compile(r"(^|_)prio_?\d")
_LESSER = re.compile(r"duration|transition|marked")
_QUEUE = re.compile(r"(^|_)(rx|tx|ch|q|queue|qp|txq|rxq|xsk|xdpsq)[_\-]?(queue_)?\d+|\[\d+\]|-\d+\.|\.\d+")
_SPECIAL = {
    "rx_bytes": "received_bytes_total",
    "rx_dropped": "received_dropped_total",
    "rx_errors": "received_errors_total",
    "rx_packets": "received_packets_total",
    "tx_bytes": "transmitted_bytes_total",
    "tx_errors": "transmitted_errors_total",
    "tx_packets": "transmitted_packets_total",
}
# linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GDRVINFO, _GSTRINGS, _GSTATS, _GSSET_INFO = 0x03, 0x1B, 0x1D, 0x37
_ETH_SS_STATS = 1
_STRING_BYTES = 32
_DRIVER_INFO = struct.Struct("=I32s32s32s32s32s12sIIIII")


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """What ETHTOOL_GDRVINFO tells, in words; empty what the driver does not."""

    driver: str
    version: str
    firmware_version: str
    bus_info: str
    expansion_rom_version: str


class EthtoolSocket:
    """The SIOCETHTOOL ioctl. Its calls raise OSError, with EOPNOTSUPP for what a driver does not have, and may block."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def driver(self, interface: str) -> DriverInfo:
        data = bytearray(_DRIVER_INFO.size)
        struct.pack_into("=I", data, 0, _GDRVINFO)
        self._ask(interface, data)
        _, driver, version, firmware, bus, rom, *_ = _DRIVER_INFO.unpack(data)
        return DriverInfo(_text(driver), _text(version), _text(firmware), _text(bus), _text(rom))

    def count(self, interface: str) -> int:
        """How many statistics the driver keeps; changes with its queues. 0 when they are too many to be true."""
        request = bytearray(struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _ETH_SS_STATS, 0))
        self._ask(interface, request)
        _, _, sets, count = struct.unpack("=IIQI", request)
        return int(count) if sets and count <= _DRIVER_STATISTICS_MAX else 0

    def strings(self, interface: str, count: int) -> list[str]:
        """The names of the driver's statistics, in its order."""
        data = bytearray(12 + count * _STRING_BYTES)
        struct.pack_into("=III", data, 0, _GSTRINGS, _ETH_SS_STATS, count)
        self._ask(interface, data)
        return [_text(data[offset : offset + _STRING_BYTES]) for offset in range(12, len(data), _STRING_BYTES)]

    def values(self, interface: str, count: int) -> Sequence[int]:
        """Their values. Ask for the `count` right before: the kernel writes as many as there are, without asking for room."""
        # So there is room for as many again, should a queue be added in between.
        data = bytearray(8 + 2 * count * 8)
        struct.pack_into("=II", data, 0, _GSTATS, count)
        self._ask(interface, data)
        return memoryview(data)[8 : 8 + count * 8].cast("Q")

    def close(self) -> None:
        self._socket.close()

    def _ask(self, interface: str, data: bytearray) -> None:
        buffer = array.array("B", data)
        request = struct.pack("16sP16x", interface.encode(), buffer.buffer_info()[0])
        fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        data[:] = buffer.tobytes()


@dataclass(frozen=True, slots=True)
class _Layout:
    """count: of all statistics. wanted: index and series of those that are kept."""

    count: int
    info: SeriesKey
    wanted: tuple[tuple[int, SeriesKey], ...]


class EthtoolSource:
    """The statistics of physical interfaces that tell of errors and congestion.

    Seldom: one question makes a driver collect some thousand numbers, a part of them from its firmware.
    """

    name = "ethtool"
    period_s = 30.0

    def __init__(self, gate: CounterGate, clock: Clock, sysfs: Path = SYSFS) -> None:
        self._gate = gate
        self._clock = clock
        self._sysfs = sysfs / "class/net"
        self._socket = EthtoolSocket()
        self._layouts = dict[str, _Layout]()

    def sample(self) -> list[Reading]:
        readings = list[Reading]()
        present = [name for name in names(self._sysfs) if is_physical(f"{self._sysfs}/{name}")]
        for name in self._layouts.keys() - set(present):
            del self._layouts[name]
        for name in present[:INTERFACES_MAX]:
            address = pci_address(f"{self._sysfs}/{name}/device")
            access = self._gate.access(address, self._clock.monotonic_s())
            if access is Access.PROBE:
                self._gate.probed(address, self._clock.monotonic_s())
            if access in (Access.OPEN, Access.PROBE):
                readings += self._statistics(name)
        return readings

    def _statistics(self, name: str) -> Iterator[Reading]:
        layout = self._layouts.get(name)
        try:
            count = self._socket.count(name)
            if layout is None or layout.count != count:
                layout = self._layouts[name] = self._layout(name, count)
            values = self._socket.values(name, count) if layout.wanted else ()
        except OSError as error:
            if layout is not None and error.errno not in (errno.EOPNOTSUPP, errno.ENODEV):
                yield from (unknown(key, f"ethtool: {error.strerror}") for _, key in layout.wanted)
            return
        yield known(layout.info, 1)
        for index, key in layout.wanted:
            yield known(key, values[index])

    def _layout(self, name: str, count: int) -> _Layout:
        driver = self._socket.driver(name)
        strings = self._socket.strings(name, count)
        info = series(
            "node_ethtool_info",
            "",
            Kind.GAUGE,
            ("device", name),
            ("bus_info", driver.bus_info),
            ("driver", driver.driver),
            ("expansion_rom_version", driver.expansion_rom_version),
            ("firmware_version", driver.firmware_version),
            ("version", driver.version),
        )
        return _Layout(
            count,
            info,
            tuple(
                (index, series(metric, "", Kind.COUNTER, ("device", name))) for metric, index in chosen(strings).items()
            ),
        )


def chosen(statistics: Sequence[str]) -> Mapping[str, int]:
    """The positions of those that are kept, by their metric; those of the whole port before those of its priorities."""
    wanted = [
        (index, statistic)
        for index, statistic in enumerate(statistics)
        if _WANTED.search(statistic) and not _QUEUE.search(statistic) and not _LESSER.search(statistic)
    ]
    wanted.sort(key=lambda item: bool(_PRIORITY.search(item[1])))
    positions = dict[str, int]()
    for index, statistic in wanted[:STATISTICS_MAX]:
        positions.setdefault(metric_name(statistic), index)
    return positions


def metric_name(statistic: str) -> str:
    """node_exporter's name for a driver's statistic: rx_crc_errors_phy -> node_ethtool_received_crc_errors_phy."""
    clean = re.sub(r"[^a-zA-Z0-9_]", "_", statistic)
    name = _SPECIAL.get(clean)
    if name is None:
        name = clean.lstrip("_").lower()
        name = re.sub(r"(^|_)rx(_|$)", r"\1received\2", name)
        name = re.sub(r"(^|_)tx(_|$)", r"\1transmitted\2", name)
    return f"node_ethtool_{name}"


def _text(data: bytes | bytearray) -> str:
    return bytes(data).split(b"\0", 1)[0].decode(errors="replace").strip()
