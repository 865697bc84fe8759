"""Network interfaces from sysfs, under node_exporter's names."""

from __future__ import annotations

import re
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, known, series, unknown

#: More ports than any node has; bounds the dictionary when something creates interfaces without end.
INTERFACES_MAX = 64
# Ends of containers and bridges come and go with pods and would fill the dictionary of an epoch.
_VIRTUAL = re.compile(r"(veth|cali|lxc|cni|flannel|docker|br-|virbr|tap|nodelocaldns|kube-ipvs)")
_COUNTERS = (
    ("receive_bytes", "rx_bytes", "bytes"),
    ("receive_packets", "rx_packets", ""),
    ("receive_errs", "rx_errors", ""),
    ("receive_drop", "rx_dropped", ""),
    ("transmit_bytes", "tx_bytes", "bytes"),
    ("transmit_packets", "tx_packets", ""),
    ("transmit_errs", "tx_errors", ""),
    ("transmit_drop", "tx_dropped", ""),
)


class NetworkSource:
    """Traffic, errors, link state and speed of each interface."""

    name = "network"
    period_s = 0.0

    def __init__(self, sysfs: Path = Path("/sys/class/net")) -> None:
        self._sysfs = sysfs

    def sample(self) -> list[Reading]:
        interfaces = sorted(path for path in self._sysfs.iterdir() if not _VIRTUAL.match(path.name))
        return [reading for path in interfaces[:INTERFACES_MAX] for reading in _interface(path)]


def _interface(path: Path) -> list[Reading]:
    readings = [
        _number(path / "statistics" / file, f"node_network_{metric}_total", unit, Kind.COUNTER)
        for metric, file, unit in _COUNTERS
    ]
    readings.append(_number(path / "carrier_changes", "node_network_carrier_changes_total", "", Kind.COUNTER))
    up = series("node_network_up", "", Kind.GAUGE, ("device", path.name))
    try:
        readings.append(known(up, float((path / "operstate").read_text().strip() == "up")))
    except OSError as error:
        readings.append(unknown(up, f"operstate: {error.strerror}"))
    speed = _number(path / "speed", "node_network_speed_bytes", "bytes", Kind.GAUGE)
    if speed.value is not None:  # megabits a second; -1 where there is no link or no such notion
        speed = known(speed.key, speed.value * 125_000) if speed.value >= 0 else unknown(speed.key, "no link speed")
    readings.append(speed)
    return readings


def _number(file: Path, metric: str, unit: str, kind: Kind) -> Reading:
    device = file.parent.parent.name if file.parent.name == "statistics" else file.parent.name
    key = series(metric, unit, kind, ("device", device))
    try:
        return known(key, int(file.read_text()))
    except OSError as error:
        return unknown(key, f"{file.name}: {error.strerror}")
    except ValueError:
        return unknown(key, f"{file.name} is not a number")
