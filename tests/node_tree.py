"""A machine's /sys and /proc, as files of a test's own; laid out as the kernel does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from switchgear.agent.events import Events
from switchgear.agent.readings import Reading
from switchgear.agent.sources.counter_gate import CounterGate
from switchgear.agent.sources.infiniband import InfinibandCounterSource, InfinibandSource
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.network import NetworkSource
from switchgear.agent.spool import Event, Spool
from switchgear.core.clock import ManualClock

_DEV_HEAD = "Inter-|   Receive  |  Transmit\n face |bytes packets ...\n"


class NodeTree:
    """root: an empty folder."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.procfs = root / "sys", root / "proc"
        for folder in (self.sysfs / "class/net", self.sysfs / "bus/pci/devices", self.procfs / "net"):
            folder.mkdir(parents=True)
        self._rows = dict[str, str]()
        self._write_rows()

    def write(self, path: Path, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(f"{text}\n")

    def pci_device(self, address: str) -> Path:
        """The device at this address, made when it is missing, with a driver."""
        device = self.sysfs / "devices/pci0000:00" / address
        if not device.exists():
            (self.sysfs / "drivers/mlx5_core").mkdir(parents=True, exist_ok=True)
            device.mkdir(parents=True)
            (device / "driver").symlink_to(self.sysfs / "drivers/mlx5_core")
            (device / "config").write_bytes(b"\xb3\x15\x21\x10")
            (self.sysfs / "bus/pci/devices" / address).symlink_to(device)
        return device

    def interface(self, name: str, address: str = "", **files: str) -> Path:
        """A network interface that is up, on the PCI device at `address` or on none."""
        folder = self.sysfs / "class/net" / name
        state = {"operstate": "up", "carrier_changes": "2", "carrier_down_count": "1", "type": "1", "speed": "400000"}
        self.write(folder, {**state, "flags": "0x1003", "mtu": "9000", "phys_port_name": "p0", **files})
        if address:
            (folder / "device").symlink_to(self.pci_device(address))
            (self.pci_device(address) / "net" / name).mkdir(parents=True)
        self._rows[name] = "5 5 5 5 0 0 0 0 6 6 6 6 0 0 0 0"
        self._write_rows()
        return folder

    def port(self, device: str, address: str, link_layer: str = "InfiniBand", **counters: str) -> Path:
        """Port 1 of an InfiniBand device, active."""
        root = self.sysfs / "class/infiniband" / device
        self.write(root, {"board_id": "MT_0000000838", "fw_ver": "28.39.1002", "hca_type": "MT4129"})
        (root / "device").symlink_to(self.pci_device(address))
        port = root / "ports/1"
        self.write(port, {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": "400 Gb/sec (4X NDR)"})
        self.write(port, {"link_layer": link_layer})
        healthy = dict.fromkeys(
            ("link_downed", "link_error_recovery", "symbol_error", "port_rcv_errors", "port_xmit_discards"), "0"
        )
        self.write(port / "counters", {**healthy, "port_rcv_data": "100", **counters})
        return port

    def remove_interface(self, name: str) -> None:
        """Moved away: its device and driver stay."""
        shutil.rmtree(self.sysfs / "class/net" / name)
        del self._rows[name]
        self._write_rows()

    def remove_port(self, device: str) -> None:
        """With its InfiniBand device."""
        shutil.rmtree(self.sysfs / "class/infiniband" / device)

    def remove_device(self, address: str) -> None:
        """From the bus."""
        (self.sysfs / "bus/pci/devices" / address).unlink()
        shutil.rmtree(self.sysfs / "devices/pci0000:00" / address)

    def _write_rows(self) -> None:
        rows = "".join(f"{name:>6}: {row}\n" for name, row in self._rows.items())
        (self.procfs / "net/dev").write_text(_DEV_HEAD + rows)


class Told:
    """Real events of one agent after another on the same spool, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self._path = folder / "spool"
        self._open("boot-1")

    def restart(self, boot: str = "boot-1") -> None:
        """Another agent begins with what the present one has on disk; sources belong to one agent."""
        self._spool.close()
        self._open(boot)

    def _open(self, boot: str) -> None:
        self._spool = Spool(self._path, boot)
        self.events = Events(self._spool, {}, self.clock, lambda: None, simulated=False)
        self._read = 0
        self.new()

    def new(self) -> list[Event]:
        """What was told since the last call."""
        pending = self._spool.pending(self._read, 1000)
        self._read = max((ordinal for ordinal, _ in pending), default=self._read)
        return [event for _, event in pending]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.new()]

    def close(self) -> None:
        self._spool.close()


def by_name(readings: list[Reading]) -> dict[str, Reading]:
    """The readings by metric and labels, as text."""
    return {f"{reading.key.metric}{dict(reading.key.labels)}": reading for reading in readings}


def network(tree: NodeTree, told: Told) -> NetworkSource:
    """Of that machine, which tells its links."""
    watch = LinkWatch("network", told.events, told.clock, tree.sysfs)
    return NetworkSource(watch, procfs=tree.procfs, sysfs=tree.sysfs)


def infiniband(tree: NodeTree, told: Told) -> tuple[InfinibandSource, InfinibandCounterSource]:
    """Of that machine: what is read at every tick, and the rest."""
    gate = CounterGate(told.events)
    watch = LinkWatch("infiniband", told.events, told.clock, tree.sysfs)
    return (
        InfinibandSource(watch, gate, told.clock, tree.sysfs),
        InfinibandCounterSource(SpeedWatch(told.events), gate, told.clock, tree.sysfs),
    )
