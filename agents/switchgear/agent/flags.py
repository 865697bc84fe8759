"""The flags of `switchgear agent`, and the settings that they make."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from switchgear.agent.enroll import server_of
from switchgear.agent.settings import POD_RESOURCES, AgentSettings
from switchgear.core import names
from switchgear.core.errors import Invalid, Reason
from switchgear.core.tls import NodeFiles
from switchgear.sim import profiles, workloads

JOIN_TOKEN = "SWITCHGEAR_JOIN_TOKEN"  # noqa: S105 - where it is, not what


EXAMPLES = """examples:
  switchgear agent --join @token --address 10.0.0.5 --state-dir /var/lib/switchgear
  switchgear agent --server 127.0.0.1:7070 --state-dir /tmp/agent --sim-gpus 8 --metrics 127.0.0.1:9400
  switchgear agent classify-log /var/log/kern.log      what the lines of a kernel log say, without an agent

What it can and cannot see on this node says `switchgear doctor --gpu`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `switchgear agent`, in groups."""
    parser.epilog = EXAMPLES
    _add_plane(parser.add_argument_group("the control plane"))
    _add_node(parser.add_argument_group("this node"))
    _add_telemetry(parser.add_argument_group("what is measured and shown"))
    _add_jobs(parser.add_argument_group("who uses the GPUs"))
    _add_simulation(parser.add_argument_group("simulated GPUs"))


def _add_plane(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--server", help="address of all services (default: that of the join token, or 127.0.0.1:7070)")
    group.add_argument(
        "--join",
        metavar="TOKEN",
        default=os.environ.get(JOIN_TOKEN, ""),
        help="what `switchgear join-token` printed, or @FILE with it, which `ps` does not show "
        f"(or ${JOIN_TOKEN}); needed once, the certificate is kept in the state directory",
    )
    for service in ("collector", "scheduler", "recovery", "autoscaler"):
        group.add_argument(f"--{service}", help=f"address of the {service}, when it is not at --server")


def _add_node(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--node", default=names.to_id(socket.gethostname()), help="id of this node (default: %(default)s)"
    )
    group.add_argument(
        "--address", default="127.0.0.1", help="where other nodes reach ranks here (default: %(default)s)"
    )
    group.add_argument("--state-dir", type=Path, required=True, help="the agent's own folder")
    group.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what jobs select this node by; may be given several times (people add more with `switchgear nodes label`)",
    )
    group.add_argument(
        "--topology",
        default="",
        metavar="LEVEL=DOMAIN,...",
        help="where the node is, such as spine=s1,leaf=l7,nvlink=r3; levels are region, zone, spine, block, rack, leaf, rail, nvlink",
    )
    group.add_argument(
        "--warm-kinds",
        type=int,
        default=1,
        metavar="N",
        help="keep a launcher with its imports done for each of the N newest kinds of jobs, at most 2; each takes some hundred "
        "megabytes, 0: none (default: %(default)s)",
    )


def _add_telemetry(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default: %(default)s)")
    group.add_argument(
        "--metrics",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="address of /metrics (default: a free port; dcgm-exporter's is 9400); beyond loopback with TLS, for clients with a "
        "certificate of ours",
    )
    group.add_argument(
        "--host-metrics",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show node_* at /metrics (default: yes); no, when a node_exporter beside it does; the collector gets them all the same",
    )
    group.add_argument(
        "--spool-mb",
        type=int,
        default=64,
        metavar="N",
        help="mebibytes on disk for samples while the collector is away, for six hours at most (default: %(default)s)",
    )
    group.add_argument("--kernel-log", type=Path, metavar="FILE", help="text file to follow instead of /dev/kmsg")


def _add_jobs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pod-resources",
        type=Path,
        default=POD_RESOURCES,
        metavar="SOCKET",
        help="where the kubelet tells which pod has which device (default: %(default)s, where there is one)",
    )
    group.add_argument(
        "--hpc-job-mapping-dir",
        type=Path,
        metavar="DIR",
        help="folder with a file for each GPU, named by its index (or INDEX.INSTANCE), in which the ids of its jobs stand, as a Slurm "
        "prolog writes it for dcgm-exporter",
    )


def _add_simulation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--sim-gpus", type=int, default=0, metavar="N", help="simulate so many GPUs (default: none)")
    group.add_argument(
        "--sim-profile",
        choices=tuple(profiles.PROFILES),
        default=profiles.DEFAULT,
        help="their model (default: %(default)s)",
    )
    group.add_argument(
        "--sim-workload",
        choices=workloads.WORKLOADS,
        default=workloads.DEFAULT,
        help="what they do (default: %(default)s)",
    )
    group.add_argument(
        "--sim-script", type=Path, metavar="FILE", help="faults for them, one a line, such as: at 12s gpu 3 xid 79"
    )


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
        host_metrics=args.host_metrics,
        spool_mb=args.spool_mb,
        kernel_log=args.kernel_log,
        pod_resources=args.pod_resources,
        hpc_job_mapping_dir=args.hpc_job_mapping_dir,
        warm_kinds=args.warm_kinds,
        labels=labels_from(args.label, args.topology),
    )


def labels_from(labels: Sequence[str], topology: str) -> tuple[tuple[str, str], ...]:
    """Of `KEY=VALUE` each, and of `LEVEL=DOMAIN,...`. Raises Invalid."""
    given = [*labels, *(f"topology/{one.strip()}" for one in topology.split(",") if one.strip())]
    found = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not (key and equals and value):
            raise Invalid(f"{one!r} must be KEY=VALUE", Reason.BAD_FIELD, field="label")
        found[key] = value
    return tuple(sorted(found.items()))
