"""Our names, types, labels and values of the host beside those of a real node_exporter on this machine.

It is skipped where `prometheus-node-exporter` is not installed; SWITCHGEAR_REQUIRE_SERVICES=1 does not ask for it, for it is a check
of names that change with its releases, and no service of ours.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from node_tree import Told
from prometheus_client.parser import text_string_to_metric_families

from switchgear.agent.readings import Reading
from switchgear.agent.sources.base import Source
from switchgear.agent.sources.clock_sync import ClockSyncSource
from switchgear.agent.sources.counter_gate import CounterGate
from switchgear.agent.sources.ethtool import EthtoolSource
from switchgear.agent.sources.filesystems import FilesystemSource
from switchgear.agent.sources.host import HostSource
from switchgear.agent.sources.infiniband import InfinibandCounterSource, InfinibandSource
from switchgear.agent.sources.kernel_tables import KernelTablesSource
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.network import InterfaceSource, NetworkSource
from switchgear.agent.sources.pressure import PressureSource
from switchgear.agent.sources.protocols import ProtocolSource
from switchgear.core.clock import SystemClock

_BINARY = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
# Debian leaves out loopback, /mnt, /media and /run by default; both leave out /dev, in which shared memory is.
_AS_UPSTREAM = (
    "--collector.netdev.device-exclude=^$",
    "--collector.filesystem.mount-points-exclude=^/(proc|run/credentials/.+|sys|var/lib/docker/.+)($|/)",
)
#: Ours is the sum over the CPUs, which theirs are one by one.
SUMMED = {"node_cpu_seconds_total": "cpu"}
#: Values that move while both look, by more than what a machine at work does in the half second between.
MOVING = ("node_memory_", "node_procs_", "node_load", "node_filefd_allocated", "node_netstat_Tcp_CurrEstab")
#: Families that our sources tell on any Linux machine, so that an empty page cannot pass.
SHARED_MIN = 60

Series = tuple[str, tuple[tuple[str, str], ...]]


@contextmanager
def node_exporter() -> Iterator[str]:
    """The address of one that runs for the time of the block."""
    assert _BINARY is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [_BINARY, f"--web.listen-address={address}", "--collector.ethtool", "--log.level=error", *_AS_UPSTREAM]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield address
        finally:
            process.terminate()


def scrape(address: str) -> tuple[Mapping[Series, float], Mapping[str, str]]:
    """Each series' value, and each family's type."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
                text = page.read().decode()
                break
        except urllib.error.URLError:  # it does not listen yet
            time.sleep(0.05)
    else:
        raise AssertionError("node_exporter did not begin to listen")
    values, types = dict[Series, float](), dict[str, str]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            summed = SUMMED.get(sample.name)
            labels = tuple(sorted(pair for pair in sample.labels.items() if pair[0] != summed))
            key = (sample.name, labels)
            values[key] = values.get(key, 0.0) + sample.value if summed else sample.value
            types[sample.name] = family.type
    return values, types


def ours(folder: Path) -> list[Reading]:
    told, clock = Told(folder), SystemClock()
    gate, speeds = CounterGate(told.events), SpeedWatch(told.events)
    sources: list[Source] = [
        *(HostSource(), PressureSource(), ProtocolSource(), ClockSyncSource(), KernelTablesSource()),
        *(InterfaceSource(speeds), EthtoolSource(gate, clock), InfinibandCounterSource(speeds, gate, clock)),
        FilesystemSource(told.events, clock),
        NetworkSource(LinkWatch("network", told.events, clock)),
        InfinibandSource(LinkWatch("infiniband", told.events, clock), gate, clock),
    ]
    readings = [reading for source in sources for reading in source.sample()]
    told.close()
    return readings


@pytest.mark.skipif(_BINARY is None, reason="prometheus-node-exporter is not installed here")
def test_what_node_exporter_tells_as_well_has_the_same_name_type_labels_and_value(tmp_path: Path) -> None:
    with node_exporter() as address:
        before, types = scrape(address)
        readings = ours(tmp_path)
        after, _ = scrape(address)
    families = {name for name, _ in before}
    shared = [reading for reading in readings if reading.key.metric in families and reading.value is not None]
    assert len({reading.key.metric for reading in shared}) >= SHARED_MIN

    of_another_type = {
        reading.key.metric: types[reading.key.metric]
        for reading in shared
        # Where it does not say which it is, anything fits.
        if types[reading.key.metric] not in (reading.key.kind.value, "unknown", "untyped")
    }
    assert of_another_type == {}

    keys = {(reading.key.metric, tuple(sorted(reading.key.labels))): reading.value for reading in shared}
    not_theirs = sorted(key for key in keys if key not in before and key not in after)
    assert not_theirs == [], "\n".join(map(str, not_theirs))

    wrong = {
        key: (before[key], value, after[key])
        for key, value in keys.items()
        if value is not None and key in before and key in after and not fits(key[0], before[key], value, after[key])
    }
    assert wrong == {}


#: It rises and falls between two looks, however short.
UNSTEADY = "node_memory_Writeback"


def fits(name: str, before: float, value: float, after: float) -> bool:
    """Whether the value lies between what was seen before and after, with what a clock tick or rounding takes away."""
    if name.startswith(UNSTEADY):
        return value >= 0
    low, high = min(before, after), max(before, after)
    slack = max(abs(high) * (0.2 if name.startswith(MOVING) else 1e-6), 100.0 if name.startswith(MOVING) else 0.02)
    return low - slack <= value <= high + slack
