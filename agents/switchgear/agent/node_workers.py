"""The workers of every node, whatever its accelerators: host, network, file systems."""

from __future__ import annotations

from switchgear.agent.events import Events
from switchgear.agent.sources.blocked import BlockedProcessesSource
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
from switchgear.agent.worker import Worker
from switchgear.core.clock import Clock


def node_workers(events: Events, clock: Clock, deadline_s: float) -> list[Worker]:
    """One for each thing that can hang by itself: the links' state does not wait for what asks a driver or its firmware."""
    gate = CounterGate(events)
    host = (
        HostSource(),
        PressureSource(),
        ProtocolSource(),
        ClockSyncSource(),
        KernelTablesSource(),
        BlockedProcessesSource(),
    )
    speeds = SpeedWatch(events)
    drivers = (InterfaceSource(speeds), EthtoolSource(gate, clock), InfinibandCounterSource(speeds, gate, clock))
    return [
        Worker("host", host, deadline_s=deadline_s),
        Worker("filesystem", [FilesystemSource(events, clock)], deadline_s=deadline_s),
        Worker("network", [NetworkSource(LinkWatch("network", events, clock))], deadline_s=deadline_s),
        Worker(
            "infiniband",
            [InfinibandSource(LinkWatch("infiniband", events, clock), gate, clock)],
            deadline_s=deadline_s,
        ),
        Worker("network-drivers", drivers, deadline_s=deadline_s),
    ]
