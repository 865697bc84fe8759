"""What there is to watch on this node: real, or simulated GPUs with their own kernel log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from switchgear.agent.association.sources import Board, GpuProcessSource
from switchgear.agent.events import SIMULATED_NETWORK, Events
from switchgear.agent.kernel_log_follower import SOURCE as KERNEL_LOG
from switchgear.agent.node_workers import node_workers
from switchgear.agent.settings import AgentSettings
from switchgear.agent.sources.base import Source
from switchgear.agent.sources.gpu import GpuDevice, GpuDriver, GpuSource, normal_pci
from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.log_reader import LogReader, TextLog
from switchgear.agent.sources.network import NetworkSource
from switchgear.agent.sources.open_log import open_kernel_log
from switchgear.agent.vendors import open_gpus
from switchgear.agent.worker import Worker
from switchgear.agent.xids import HasXids, XidHistory, XidValues
from switchgear.core import names
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, Reason
from switchgear.sim.profiles import profile
from switchgear.v1 import fleet_service_pb2

if TYPE_CHECKING:
    from switchgear.sim.gpus import SimulatedGpus
    from switchgear.sim.nics import SimulatedNics

log = logging.getLogger(__name__)

#: What a sample may take before its series count as unknown and the hang is an event. A driver that is busy answers late now and then.
DEADLINE_S = 2.0
#: Between readings of what changes seldom: error totals, remapped rows, limits.
SLOW_PERIOD_S = 15.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """log: the kernel log, or None where it cannot be read. processes: on the GPUs. by_pci: index of each GPU by its normal PCI address."""

    workers: Sequence[Worker]
    devices: Sequence[GpuDevice]
    log: LogReader | None
    processes: Board

    @property
    def by_pci(self) -> Mapping[str, int]:
        return {normal_pci(device.pci_bus_id): device.index for device in self.devices}

    def gpus(self, node: str) -> list[fleet_service_pb2.Gpu]:
        """The inventory of `nodes/{node}`."""
        return [
            fleet_service_pb2.Gpu(
                name=names.gpu_name(node, device.index),
                index=device.index,
                uuid=device.uuid,
                model=device.model,
                memory_bytes=device.memory_bytes,
                pci_bus_id=device.pci_bus_id,
                simulated=device.simulated,
            )
            for device in self.devices
        ]


@contextmanager
def open_hardware(
    settings: AgentSettings, kernel_boot_id: str, events: Events, clock: Clock, late: Callable[[], None]
) -> Iterator[Hardware]:
    """events: where sources tell what they notice, and what an earlier agent left off. late: see `Opening.late`."""
    log_cursor = events.cursor(KERNEL_LOG)
    board = Board()
    with ExitStack() as stack:
        workers = node_workers(events, clock, DEADLINE_S)
        if settings.sim_gpus:
            driver = _simulated(settings, clock)
            stack.enter_context(running_thread(driver.run, driver.close, "simulated-faults"))
            workers += [_gpu_worker(driver, device, settings.node, board) for device in driver.devices()]
            if not profile(settings.sim_profile).is_amd:
                xids = XidHistory(clock)
                events.observe(xids.observe)
                workers.append(_xid_worker([(xids, device) for device in driver.devices()], settings.node))
            workers.append(_simulated_network(driver.nics, events, clock))
            hardware = Hardware(workers, driver.devices(), TextLog(driver.kernel_log, log_cursor), board)
        else:
            kernel_log = open_kernel_log(settings.kernel_log, kernel_boot_id, log_cursor)
            found = stack.enter_context(open_gpus(events, clock, late, kernel_log=kernel_log is not None))
            workers += [_gpu_worker(driver, device, settings.node, board) for driver, device in found]
            if have_xids := [(driver.xids, device) for driver, device in found if isinstance(driver, HasXids)]:
                workers.append(_xid_worker(have_xids, settings.node))
            hardware = Hardware(workers, [device for _, device in found], kernel_log, board)
        yield hardware


def _simulated(settings: AgentSettings, clock: Clock) -> SimulatedGpus:
    """Raises Invalid when the fault script is wrong or cannot be read."""
    from switchgear.sim.gpus import SimulatedGpus  # here, for a node with real ones has no use for it

    driver = SimulatedGpus(
        settings.node,
        settings.sim_gpus,
        settings.state_dir,
        clock,
        profile=settings.sim_profile,
        work=settings.sim_workload,
    )
    if settings.sim_script is not None:
        try:
            driver.plan(settings.sim_script.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"the fault script cannot be read: {error}", Reason.BAD_FIELD, field="sim_script") from None
    driver.follow_faults()
    return driver


def _simulated_network(nics: SimulatedNics, events: Events, clock: Clock) -> Worker:
    watch = LinkWatch(SIMULATED_NETWORK, events, clock, nics.sysfs)
    source = NetworkSource(watch, procfs=nics.procfs, sysfs=nics.sysfs, every_link=True)
    return Worker(SIMULATED_NETWORK, [source], deadline_s=DEADLINE_S)


def _gpu_worker(driver: GpuDriver, device: GpuDevice, hostname: str, board: Board) -> Worker:
    """One worker a GPU: a hanging one must not hide the others."""
    sources: list[Source] = [
        GpuSource(driver, device, hostname),
        GpuSource(driver, device, hostname, slow=True, period_s=SLOW_PERIOD_S),
        GpuProcessSource(driver, device, board),
    ]
    return Worker(f"gpu-{device.index}", sources, deadline_s=DEADLINE_S, gpu=device.index)


def _xid_worker(gpus: Sequence[tuple[XidHistory, GpuDevice]], hostname: str) -> Worker:
    """Apart from the GPUs' workers: what the log says of a GPU is wanted most while its driver's calls hang."""
    sources = [
        GpuSource(XidValues(history, normal_pci(device.pci_bus_id)), device, hostname) for history, device in gpus
    ]
    return Worker("xids", sources, deadline_s=DEADLINE_S)


@contextmanager
def running_thread(run: Callable[[], None], close: Callable[[], None], name: str) -> Iterator[None]:
    """A daemon thread that lives as long as the block; it may hang in a read, and then the agent ends without it."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        close()
        thread.join(timeout=1.0)
