"""The node agent: composes the parts, as a process of its own or as a task in `switchgear up`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime

import psutil

from switchgear.agent.association.sources import AssociationSource, UserMetrics
from switchgear.agent.association.table import to_proto
from switchgear.agent.control import Control, Reports
from switchgear.agent.enroll import join, read_token, warn_of_expiry
from switchgear.agent.events import Events
from switchgear.agent.exporter import Exporter
from switchgear.agent.flags import add_arguments, settings_from
from switchgear.agent.hardware import DEADLINE_S, open_hardware, running_thread
from switchgear.agent.kernel_log_follower import FABRIC_MANAGER, FABRIC_MANAGER_LOG, WAIT_S, KernelLogFollower
from switchgear.agent.launcher_process import LauncherSettings
from switchgear.agent.launchers import Launchers
from switchgear.agent.memory import give_back_once_settled, share_heap
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.outbox import Outbox
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.settings import AgentSettings
from switchgear.agent.sources.log_reader import TextLog
from switchgear.agent.spool import Spool
from switchgear.agent.standbys import Standbys
from switchgear.agent.stream import Identity, TelemetryStream
from switchgear.agent.ticker import Ticker
from switchgear.agent.worker import Worker
from switchgear.core import names, rpc
from switchgear.core.clock import SystemClock
from switchgear.core.metrics import ADDRESS_FILE, MetricsServer, new_registry
from switchgear.core.process import boot_id, only_one, until_signal
from switchgear.core.tls import NodeFiles
from switchgear.core.version import VERSION
from switchgear.v1 import fleet_service_pb2

__all__ = ["TLS_FOLDER", "add_arguments", "main", "run_agent"]
log = logging.getLogger(__name__)

#: In the agent's state directory: its key and certificate, once it has joined.
TLS_FOLDER = "tls"


def main(args: argparse.Namespace) -> int:
    """Runs the agent until SIGTERM or SIGINT; launchers live on."""
    share_heap()
    files = NodeFiles(args.state_dir / TLS_FOLDER)
    if args.join and not files.complete:
        join(read_token(args.join), args.node, files.folder)
    if files.complete:
        warn_of_expiry(files, datetime.now(UTC))
    asyncio.run(until_signal(_alone(settings_from(args, files))))
    return 0


async def _alone(settings: AgentSettings) -> None:
    """An agent that has the process, and so its memory, for itself."""
    giving_back = asyncio.create_task(give_back_once_settled())
    try:
        await run_agent(settings)
    finally:
        giving_back.cancel()


class _GpusCameLate(Exception):
    """Their driver was loaded after the agent had started."""


async def run_agent(settings: AgentSettings) -> None:
    """Runs one agent until cancelled. Several may run in a process, each with its own node and state directory.

    Raises FailedPrecondition when another agent uses the state directory or the metrics port.
    """
    while True:
        try:
            await _run(settings)
        except* _GpusCameLate:
            log.info("GPUs are there that were not: all is opened anew")


async def _run(settings: AgentSettings) -> None:
    """Until cancelled, or until GPUs come late."""
    clock = SystemClock()
    node = names.node_name(settings.node)
    simulated = settings.sim_gpus > 0
    kernel_boot_id = boot_id()
    with ExitStack() as stack:
        # Two agents on one spool would number different events alike.
        stack.enter_context(only_one(settings.state_dir, "agent"))
        spool = Spool(settings.state_dir / "spool", kernel_boot_id)
        stack.callback(spool.close)
        epoch = uuid.uuid4().hex
        samples = SampleSpool(settings.state_dir / "samples", epoch, bytes_max=settings.spool_mb << 20)
        outbox = Outbox(Sampler(), spool, samples)
        stack.callback(outbox.close)
        gpus = dict[str, int]()
        events = Events(spool, gpus, clock, outbox.wake_from_thread, simulated=simulated)
        loop = asyncio.get_running_loop()
        late = asyncio.Event()

        def gpus_came_late() -> None:
            loop.call_soon_threadsafe(late.set)

        hardware = stack.enter_context(open_hardware(settings, kernel_boot_id, events, clock, gpus_came_late))
        gpus.update(hardware.by_pci)
        if hardware.log is not None:
            follower = KernelLogFollower(hardware.log, events, clock)
            stack.enter_context(running_thread(follower.run, follower.close, "kernel-log"))
        if FABRIC_MANAGER_LOG.exists():
            manager_log = TextLog(FABRIC_MANAGER_LOG, events.cursor(FABRIC_MANAGER), from_end=True)
            follower = KernelLogFollower(manager_log, events, clock, FABRIC_MANAGER, poll_s=WAIT_S)
            stack.enter_context(running_thread(follower.run, follower.close, "fabric-manager-log"))

        identity = Identity(node=node, boot_id=spool.boot_id, epoch=epoch, agent_version=VERSION)
        stream = TelemetryStream(settings.collector, identity, outbox, clock, tls=settings.tls)
        launcher_settings = LauncherSettings(
            settings.launcher_command,
            node,
            settings.address,
            settings.recovery,
            settings.state_dir.resolve(),
            settings.autoscaler,
            tls=settings.tls,
        )
        standbys = Standbys(launcher_settings, settings.warm_kinds, clock)
        reports = Reports()
        launchers = Launchers(launcher_settings, reports.put, standbys)
        launchers.adopt()

        def tell_users() -> None:
            outbox.associations = to_proto(association.table.associations)

        def users_changed() -> None:
            loop.call_soon_threadsafe(tell_users)

        association = AssociationSource(
            hardware.processes,
            hardware.devices,
            launchers=lambda: {one.pid: one.job for one in launchers.running()},
            pod_resources=settings.pod_resources,
            hpc_job_mapping_dir=settings.hpc_job_mapping_dir,
            clock=clock,
            changed=users_changed,
        )
        registry = new_registry("agent")
        registry.register(UserMetrics(lambda: association.table))
        metrics = AgentMetrics(registry, outbox, stream, lambda: standbys.ready)
        beyond = not rpc.is_loopback(rpc.split_address(settings.metrics)[0])
        exporter = MetricsServer(
            Exporter(
                outbox.sampler.latest,
                registry,
                lambda: association.table.labels,
                host_metrics=settings.host_metrics,
            ).page,
            settings.metrics,
            settings.tls if beyond else None,
        )
        stack.callback(exporter.close)
        try:
            (settings.state_dir / ADDRESS_FILE).write_text(exporter.address)
        except OSError as error:  # a full disk; the address is in the log as well
            log.error("%s: %s; free some space", settings.state_dir / ADDRESS_FILE, error.strerror)

        workers = list(hardware.workers)
        if hardware.devices:
            workers.append(Worker("association", [association], deadline_s=DEADLINE_S))
        ticker = Ticker(
            workers,
            outbox,
            stream,
            metrics=metrics,
            events=events,
            clock=clock,
            interval_s=settings.interval_s,
        )

        inventory = fleet_service_pb2.Node(
            name=node,
            address=settings.address,
            gpus=hardware.gpus(node),
            agent_version=VERSION,
            # Said, since others would take an address on loopback for a plain one, and we may listen on all.
            metrics_address=f"{'https://' if beyond else ''}{exporter.reached_at(settings.address)}",
            labels=dict(settings.labels),
            cpu_milli=1000 * (psutil.cpu_count() or 0),
            memory_mib=psutil.virtual_memory().total >> 20,
        )
        control = Control(settings.scheduler, inventory, launchers, reports, clock, tls=settings.tls)
        log.info("agent of %s", node, extra={"gpus": len(inventory.gpus), "metrics": exporter.address})
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = (ticker.run(), stream.run(), control.run(), standbys.run())
                for part in (*parts, _wait_for(late)):
                    tasks.create_task(part)
        finally:
            await launchers.close()


async def _wait_for(late: asyncio.Event) -> None:
    await late.wait()
    raise _GpusCameLate
