"""The nodes of one process, each with its own connection, ticking one after the other over the interval."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from switchgear.agent.sources.kernel_log import classify
from switchgear.core.clock import Clock
from switchgear.core.process import allow_open_files
from switchgear.sim import profiles
from switchgear.sim.faults import XID_LOST, Fault, FaultKind, History, Scheduled
from switchgear.sim.fleet.collector import Collector
from switchgear.sim.fleet.counts import Counts
from switchgear.sim.fleet.node import Shared, SimulatedNode
from switchgear.sim.fleet.script import FleetFault, NodeFault, NodeFaultKind, parse_fleet_script
from switchgear.sim.fleet.settings import OTHER_FILES, VARIANTS_MAX, FleetSettings
from switchgear.sim.fleet.variant import BEFORE_S, PROFILE, Variant, gpus_for
from switchgear.sim.gpus import simulated_device
from switchgear.sim.kernel_lines import kernel_lines
from switchgear.sim.workloads import seed_of
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Nodes with values of their own, for faults that values show; of further ones the faults show in events alone.
OWN_VALUES_MAX = 64
#: Between looks at what is due: each look costs as much as a block.
_LOOK_S = 0.004
#: Nodes that are served before answers are read again.
_AT_ONCE_MAX = 64


class Fleet:
    """Raises FailedPrecondition when the system allows too few sockets."""

    def __init__(self, settings: FleetSettings, clock: Clock) -> None:
        allow_open_files(settings.nodes + OTHER_FILES)
        self._settings = settings
        self._clock = clock
        self.counts = Counts()
        names = settings.names()
        gpus = gpus_for(settings.series)
        begin = settings.first - 1
        mine = names[begin : begin + settings.nodes]
        faults = parse_fleet_script(settings.script, frozenset(names), gpus) if settings.script else []
        self._faults = [fault for fault in faults if fault.node in frozenset(mine)]
        shared = [
            Variant(seed_of(settings.seed, "variant", number), settings.series, settings.interval_s)
            for number in range(min(VARIANTS_MAX, settings.nodes))
        ]
        own = _own_values(self._faults, gpus)
        self.variants = [*shared]
        common = Shared(
            f"simulated.{uuid.uuid4().hex[:12]}",
            settings.series,
            Collector.at(settings.collector, settings.tls),
            self.counts,
            clock,
        )
        #: In the order of their ticks.
        self.nodes = list[SimulatedNode]()
        for place, name in enumerate(mine):
            variant = shared[place * len(shared) // len(mine)]
            if name in own:
                variant = Variant(seed_of(settings.seed, name, 0), settings.series, settings.interval_s, own[name])
                self.variants.append(variant)
            phase_s = settings.interval_s * (begin + place) / len(names)
            self.nodes.append(SimulatedNode(name, variant, common, phase_s))
        self._by_name = {node.name: node for node in self.nodes}

    def observe(self) -> None:
        """Brings the counts up to date that nobody keeps on the way."""
        self.counts.samples = sum(variant.samples for variant in self.variants)
        self.counts.changed = sum(variant.changed for variant in self.variants)
        self.counts.blocks_waiting = sum(node.waiting for node in self.nodes)

    async def run(self) -> None:
        """Ticks until cancelled, and then ends all connections."""
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(place / self._settings.connects_per_s, node.start) for place, node in enumerate(self.nodes)
        ]
        self.counts.warm = self._settings.warm_up_s == 0
        timers.append(loop.call_later(self._settings.warm_up_s, self._warmed_up))
        for at_s, what in self._plan():
            timers.append(loop.call_later(at_s, what))
        try:
            await self._tick()
        finally:
            for timer in timers:
                timer.cancel()
            for node in self.nodes:
                node.close()

    def _warmed_up(self) -> None:
        self.counts.warm = True

    async def _tick(self) -> None:
        clock, interval_s = self._clock, self._settings.interval_s
        base_s, number = clock.monotonic_s(), 0
        while True:
            number += 1
            place = 0
            while place < len(self.nodes):
                due_s = clock.monotonic_s() - base_s
                batch = place + _AT_ONCE_MAX
                while place < min(batch, len(self.nodes)) and self.nodes[place].phase_s <= due_s:
                    node = self.nodes[place]
                    if node.variant.tick < number:
                        node.variant.advance(number)
                    node.tick()
                    place += 1
                if place < len(self.nodes):
                    wait_s = self.nodes[place].phase_s + base_s - clock.monotonic_s()
                    await asyncio.sleep(0 if wait_s <= 0 else max(_LOOK_S, wait_s))
            base_s += interval_s
            now_s = clock.monotonic_s()
            if now_s - base_s > interval_s:  # missed ticks are not made up for
                self.counts.ticks_late += 1
                base_s = now_s
            await asyncio.sleep(max(0.0, base_s - now_s))

    def _plan(self) -> Iterator[tuple[float, Callable[[], None]]]:
        for item in self._faults:
            node = self._by_name[item.node]
            if isinstance(item.fault, Fault):
                for after_s, event in _events(item.node, item.fault):
                    yield item.at_s + after_s, partial(node.tell, event)
            else:
                yield from _node_fault(node, item.at_s, item.fault)


def _node_fault(node: SimulatedNode, at_s: float, fault: NodeFault) -> Iterator[tuple[float, Callable[[], None]]]:
    def begin() -> None:
        _let(node, fault, holds=True)

    def end() -> None:
        _let(node, fault, holds=False)

    yield at_s, begin
    if fault.for_s != float("inf"):
        yield at_s + fault.for_s, end


def _let(node: SimulatedNode, fault: NodeFault, *, holds: bool) -> None:
    match fault.kind:
        case NodeFaultKind.SILENT:
            node.silence(holds)
        case NodeFaultKind.PARTITION:
            node.mute(holds)
        case NodeFaultKind.CLOCK_SKEW:
            node.skew(fault.skew_s if holds else 0.0)


def _own_values(faults: list[FleetFault], gpus: int) -> Mapping[str, list[History]]:
    """Histories of the GPUs of nodes whose values show what happens to them."""
    found = dict[str, list[History]]()
    for item in faults:
        if isinstance(item.fault, Fault) and _shows(item.fault) and len(found) < OWN_VALUES_MAX:
            found.setdefault(item.node, [History() for _ in range(gpus)])
    for item in faults:
        if item.node in found and isinstance(item.fault, Fault) and item.fault.text.startswith("gpu"):
            found[item.node][item.fault.target].add(Scheduled(item.at_s + BEFORE_S, item.fault))
    return found


def _shows(fault: Fault) -> bool:
    """Whether a GPU with it has other values, or none."""
    return fault.kind.has_values or fault.kind is FaultKind.VANISH or fault.code == XID_LOST


def _events(node: str, fault: Fault) -> Iterator[tuple[float, pb.Event]]:
    """What the agent makes of the kernel log's lines, with the seconds after the fault."""
    profile = profiles.profile(PROFILE)
    by_pci = {
        simulated_device(node, gpu, profile).pci_bus_id.partition(".")[0]: gpu for gpu in range(profiles.GPUS_MAX)
    }
    for after_s, line in kernel_lines(fault, profile):
        found = classify(line)
        if found is not None:
            yield (
                after_s,
                pb.Event(
                    source="kernel_log",
                    kind=found.kind,
                    gpu=by_pci.get(found.pci),
                    code=found.code,
                    text=f"{line} [simulated]",
                    simulated=True,
                    pci=found.pci,
                    detail=found.detail(),
                ),
            )
