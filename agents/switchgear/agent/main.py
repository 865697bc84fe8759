"""The node agent: composes the parts, as a process of its own or as a task in `switchgear up`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import os
import socket
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from switchgear.agent.control import Control, Reports
from switchgear.agent.enroll import join, read_token, server_of, warn_of_expiry
from switchgear.agent.events import Events
from switchgear.agent.exporter import Exporter
from switchgear.agent.hardware import open_hardware, running_thread
from switchgear.agent.kernel_log_follower import KernelLogFollower
from switchgear.agent.launcher_process import LauncherSettings
from switchgear.agent.launchers import Launchers
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.sampler import Sampler
from switchgear.agent.settings import AgentSettings
from switchgear.agent.spool import Spool
from switchgear.agent.standbys import Standbys
from switchgear.agent.stream import Identity, Outbox, TelemetryStream
from switchgear.agent.ticker import Ticker
from switchgear.core import names, rpc
from switchgear.core.clock import SystemClock
from switchgear.core.errors import Invalid, Reason
from switchgear.core.metrics import ADDRESS_FILE, MetricsServer, new_registry
from switchgear.core.process import boot_id, only_one, until_signal
from switchgear.core.tls import NodeFiles
from switchgear.sim import profiles, workloads
from switchgear.v1 import fleet_service_pb2

log = logging.getLogger(__name__)

#: In the agent's state directory: its key and certificate, once it has joined.
TLS_FOLDER = "tls"
JOIN_TOKEN = "SWITCHGEAR_JOIN_TOKEN"  # noqa: S105 - where it is, not what


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `switchgear agent`."""
    parser.add_argument("--server", help="address of all services (default: that of the join token, or 127.0.0.1:7070)")
    parser.add_argument(
        "--join",
        metavar="TOKEN",
        default=os.environ.get(JOIN_TOKEN, ""),
        help="what `switchgear join-token` printed, or @FILE with it, which `ps` does not show "
        f"(or ${JOIN_TOKEN}); needed once, the certificate is kept in the state directory",
    )
    for service in ("collector", "scheduler", "recovery", "autoscaler"):
        parser.add_argument(f"--{service}", help=f"address of the {service}, when it is not at --server")
    parser.add_argument(
        "--node", default=names.to_id(socket.gethostname()), help="id of this node (default: %(default)s)"
    )
    parser.add_argument(
        "--address", default="127.0.0.1", help="where other nodes reach ranks here (default: %(default)s)"
    )
    parser.add_argument("--state-dir", type=Path, required=True, help="the agent's own folder")
    parser.add_argument("--sim-gpus", type=int, default=0, help="simulate so many GPUs (default: none)")
    parser.add_argument(
        "--sim-profile",
        choices=tuple(profiles.PROFILES),
        default=profiles.DEFAULT,
        help="their model (default: %(default)s)",
    )
    parser.add_argument(
        "--sim-workload",
        choices=workloads.WORKLOADS,
        default=workloads.DEFAULT,
        help="what they do (default: %(default)s)",
    )
    parser.add_argument(
        "--sim-script", type=Path, metavar="FILE", help="faults for them, one a line, such as: at 12s gpu 3 xid 79"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument(
        "--metrics",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="address of /metrics (default: a free port); beyond loopback with TLS, for clients with a certificate of ours",
    )
    parser.add_argument(
        "--warm-kinds",
        type=int,
        default=1,
        metavar="N",
        help="keep a launcher with its imports done for each of the N newest kinds of jobs, at most 2; each takes some hundred "
        "megabytes, 0: none (default: %(default)s)",
    )
    parser.add_argument("--kernel-log", type=Path, help="text file to follow instead of /dev/kmsg")


def main(args: argparse.Namespace) -> int:
    """Runs the agent until SIGTERM or SIGINT; launchers live on."""
    files = NodeFiles(args.state_dir / TLS_FOLDER)
    if args.join and not files.complete:
        join(read_token(args.join), args.node, files.folder)
    if files.complete:
        warn_of_expiry(files, datetime.now(UTC))
    asyncio.run(until_signal(run_agent(settings_from(args, files))))
    return 0


def settings_from(args: argparse.Namespace, files: NodeFiles) -> AgentSettings:
    """Raises Invalid when a value is out of its bounds, or a node that has joined is not told where the services are."""
    server = args.server or server_of(files.folder)
    apart = {"--collector": args.collector, "--scheduler": args.scheduler, "--autoscaler": args.autoscaler}
    if files.complete and not server and (missing := [flag for flag, address in apart.items() if not address]):
        # Nothing with TLS is at the default address: it would be tried for ever.
        raise Invalid(
            f"where are the services? Give their addresses at which machines connect: {', '.join(missing)} "
            "(or --server, when all are at one)",
            Reason.BAD_FIELD,
            field=missing[0],
        )
    server = server or "127.0.0.1:7070"
    return AgentSettings(
        node=args.node,
        collector=args.collector or server,
        scheduler=args.scheduler or server,
        # With services apart, the scheduler knows where recovery is.
        recovery=args.recovery or ("" if args.scheduler else server),
        autoscaler=args.autoscaler or server,
        state_dir=args.state_dir,
        tls=files.tls if files.complete else None,
        address=args.address,
        sim_gpus=args.sim_gpus,
        sim_profile=args.sim_profile,
        sim_workload=args.sim_workload,
        sim_script=args.sim_script,
        interval_s=args.interval,
        metrics=args.metrics,
        kernel_log=args.kernel_log,
        warm_kinds=args.warm_kinds,
    )


async def run_agent(settings: AgentSettings) -> None:
    """Runs one agent until cancelled. Several may run in a process, each with its own node and state directory.

    Raises FailedPrecondition when another agent uses the state directory or the metrics port.
    """
    clock = SystemClock()
    node = names.node_name(settings.node)
    version = importlib.metadata.version("switchgear")
    simulated = settings.sim_gpus > 0
    kernel_boot_id = boot_id()
    with ExitStack() as stack:
        # Two agents on one spool would number different events alike.
        stack.enter_context(only_one(settings.state_dir, "agent"))
        spool = Spool(settings.state_dir / "spool", kernel_boot_id)
        stack.callback(spool.close)
        outbox = Outbox(Sampler(), spool)
        gpus = dict[str, int]()
        events = Events(spool, gpus, clock, outbox.wake_from_thread, simulated=simulated)
        hardware = stack.enter_context(open_hardware(settings, kernel_boot_id, events, clock))
        gpus.update(hardware.by_pci)
        if hardware.log is not None:
            follower = KernelLogFollower(hardware.log, events, clock)
            stack.enter_context(running_thread(follower.run, follower.close, "kernel-log"))

        identity = Identity(node=node, boot_id=spool.boot_id, epoch=uuid.uuid4().hex, agent_version=version)
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
        registry = new_registry("agent")
        metrics = AgentMetrics(registry, outbox, stream, lambda: standbys.ready)
        beyond = not rpc.is_loopback(rpc.split_address(settings.metrics)[0])
        exporter = MetricsServer(
            Exporter(outbox.sampler.latest, registry).page, settings.metrics, settings.tls if beyond else None
        )
        stack.callback(exporter.close)
        (settings.state_dir / ADDRESS_FILE).write_text(exporter.address)

        ticker = Ticker(
            hardware.workers,
            outbox,
            stream,
            metrics=metrics,
            events=events,
            clock=clock,
            interval_s=settings.interval_s,
        )

        reports = Reports()
        launchers = Launchers(launcher_settings, reports.put, standbys)
        launchers.adopt()
        inventory = fleet_service_pb2.Node(
            name=node,
            address=settings.address,
            gpus=hardware.gpus(node),
            agent_version=version,
            # Said, since others would take an address on loopback for a plain one, and we may listen on all.
            metrics_address=f"{'https://' if beyond else ''}{exporter.reached_at(settings.address)}",
        )
        control = Control(settings.scheduler, inventory, launchers, reports, clock, tls=settings.tls)
        log.info("agent of %s", node, extra={"gpus": len(inventory.gpus), "metrics": exporter.address})
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in (ticker.run(), stream.run(), control.run(), standbys.run()):
                    tasks.create_task(part)
        finally:
            await launchers.close()
