"""What the sources of host and network cost: CPU time of one sample of each, and how many series it has.

The host is this one; beside its own there are as many network interfaces and InfiniBand ports as on a large GPU node, in a folder that
is laid out as the kernel does. Prints one JSON object; exit status 1 when a bound is broken:

    python benchmarks/host_sources.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from node_tree import NodeTree, Told

from switchgear.agent.sources.base import Source
from switchgear.agent.sources.blocked import BlockedProcessesSource
from switchgear.agent.sources.clock_sync import ClockSyncSource
from switchgear.agent.sources.counter_gate import PROBE_S, CounterGate
from switchgear.agent.sources.ethtool import EthtoolSource
from switchgear.agent.sources.filesystems import FilesystemSource
from switchgear.agent.sources.host import HostSource
from switchgear.agent.sources.infiniband import InfinibandCounterSource, InfinibandSource
from switchgear.agent.sources.infiniband_names import COUNTERS, HW_COUNTERS
from switchgear.agent.sources.kernel_tables import KernelTablesSource
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.network import InterfaceSource, NetworkSource
from switchgear.agent.sources.pressure import PressureSource
from switchgear.agent.sources.protocols import ProtocolSource

FAST_MS_MAX = 1.5
SLOW_MS_MAX = 10.0


def node(folder: Path, ports: int) -> NodeTree:
    """So many adapters, each with an interface and an InfiniBand port."""
    tree = NodeTree(folder)
    for index in range(ports):
        address = f"0000:{16 + index:02x}:00.0"
        tree.interface(f"eth{index}", address)
        port = tree.port(f"mlx5_{index}", address)
        tree.write(port / "counters", dict.fromkeys(COUNTERS, "1234567"))
        tree.write(port / "hw_counters", dict.fromkeys(HW_COUNTERS, "1234567"))
    return tree


def cost_ms(source: Source, samples: int) -> tuple[float, int]:
    """Median CPU time of a sample, of all threads, and its readings."""
    times_s = list[float]()
    count = 0
    for _ in range(samples):
        start_s = time.process_time()
        count = len(source.sample())
        times_s.append(time.process_time() - start_s)
    return sorted(times_s)[samples // 2] * 1e3, count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, default=8, help="adapters of the node (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=101, help="samples of each source (default: %(default)s)")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tree, told = node(Path(folder) / "node", args.ports), Told(Path(folder))
        gate, speeds = CounterGate(told.events), SpeedWatch(told.events)
        roots = {"procfs": tree.procfs, "sysfs": tree.sysfs}
        network = NetworkSource(LinkWatch("network", told.events, told.clock, tree.sysfs), **roots)
        ports = InfinibandSource(
            LinkWatch("infiniband", told.events, told.clock, tree.sysfs), gate, told.clock, tree.sysfs
        )
        ports.sample()
        told.clock.advance(PROBE_S)
        ports.sample()
        fast: list[Source] = [PressureSource(), network, ports]
        medium: list[Source] = [HostSource()]
        slow: list[Source] = [
            *(ProtocolSource(), ClockSyncSource(), KernelTablesSource(), BlockedProcessesSource()),
            *(InterfaceSource(speeds, tree.sysfs), InfinibandCounterSource(speeds, gate, told.clock, tree.sysfs)),
            *(EthtoolSource(CounterGate(told.events), told.clock), FilesystemSource(told.events, told.clock)),
        ]
        paces = {
            pace: {source.name: cost_ms(source, args.samples) for source in sources}
            for pace, sources in (("fast", fast), ("medium", medium), ("slow", slow))
        }
        told.close()
    sums = {pace: sum(ms for ms, _ in costs.values()) for pace, costs in paces.items()}
    result = {
        "ports": args.ports,
        "sources": {
            pace: {name: {"ms": round(ms, 3), "series": series} for name, (ms, series) in costs.items()}
            for pace, costs in paces.items()
        },
        "fast_ms": round(sums["fast"], 3),
        "fast_ms_max": FAST_MS_MAX,
        "slow_ms": round(sums["slow"], 3),
        "slow_ms_max": SLOW_MS_MAX,
        "cpu_ms_each_second": round(sums["fast"] + sums["medium"] / 5 + sums["slow"] / 15, 3),
    }
    print(json.dumps(result, indent=2))
    return int(sums["fast"] > FAST_MS_MAX or sums["slow"] > SLOW_MS_MAX)


if __name__ == "__main__":
    raise SystemExit(main())
