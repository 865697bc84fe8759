"""`switchgear up`: all services, the gateway and, without TLS, one node agent in one process. State in SQLite under one directory."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from switchgear.agent.amd import library as amd
from switchgear.agent.main import TLS_FOLDER, run_agent
from switchgear.agent.nvml import library as nvml
from switchgear.agent.settings import AgentSettings
from switchgear.cli import exits
from switchgear.cli.collector_flags import add_collector_arguments, collector_config_from
from switchgear.cli.compose import DEFAULT_METRICS, SERVICES, PlaneSettings, running
from switchgear.cli.engine_flags import add_engine_arguments, policies_of, slurm_from
from switchgear.cli.lease_flags import add_lease_arguments, timing_from
from switchgear.cli.planner_flags import add_planner_argument, policy_from
from switchgear.cli.policies import add_policy_argument, configured_policies
from switchgear.cli.state import (
    DATABASE_URL_VARIABLE,
    DEFAULT_GRPC,
    DEFAULT_HTTP,
    DEFAULT_MACHINES,
    Running,
    default_state_dir,
    write_running,
)
from switchgear.collector.config import CollectorConfig
from switchgear.core import loop, names
from switchgear.core.metrics import ADDRESS_FILE
from switchgear.core.modes import Mode
from switchgear.core.process import only_one, until_signal
from switchgear.core.rpc import is_loopback, split_address
from switchgear.core.service import Endpoints
from switchgear.core.tls import TlsFiles
from switchgear.planner.model import Policy
from switchgear.recovery.values import Timing
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.serve import router
from switchgear.serve.router import DEFAULT_LISTEN
from switchgear.sim import profiles
from switchgear.store.database import sqlite_url

#: How long `up` waits for requests in its router at the end; a router of its own (`switchgear router`) is more patient.
ROUTER_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    """grpc, http, router: HOST:PORT to listen on, port 0 takes a free one. database_url: empty for SQLite in the state directory.

    agent: whether this process is also the agent of this machine; None: as long as there is no TLS and no Slurm. Jobs run as the agent's
    user, and with TLS that user has the CA's key. sim_gpus: simulated GPUs of that agent, of the model sim_profile.
    policies: modes of the configuration. metrics: HOST:PORT of `/metrics`. machines: with TLS, HOST:PORT at which agents and
    launchers bring certificates. router_key_file: keys of the router's clients, which it must have beyond loopback.
    timing: the leases of jobs that begin from now on. planner: what operators choose of it. collector: what its configuration file says.
    slurm: the Slurm whose nodes are used; None: agents start the launchers.
    """

    state_dir: Path
    grpc: str = DEFAULT_GRPC
    http: str = DEFAULT_HTTP
    router: str = DEFAULT_LISTEN
    database_url: str = ""
    agent: bool | None = None
    node: str = ""
    sim_gpus: int = 0
    sim_profile: str = profiles.DEFAULT
    policies: Mapping[str, Mode] = field(default_factory=dict)
    metrics: str = DEFAULT_METRICS
    machines: str = DEFAULT_MACHINES
    router_key_file: Path | None = None
    timing: Timing = field(default_factory=Timing)
    planner: Policy = field(default_factory=Policy)
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    slurm: SlurmSettings | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        help="where all state lives (default: $SWITCHGEAR_STATE_DIR or ~/.local/state/switchgear)",
    )
    parser.add_argument(
        "--grpc",
        default=DEFAULT_GRPC,
        metavar="HOST:PORT",
        help="gRPC address (default: %(default)s; port 0: a free one)",
    )
    parser.add_argument(
        "--http",
        default=DEFAULT_HTTP,
        metavar="HOST:PORT",
        help="REST address (default: %(default)s; port 0: a free one)",
    )
    parser.add_argument(
        "--router",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help="address for inference requests, /v1/completions (default: %(default)s; port 0: a free one)",
    )
    parser.add_argument(
        "--router-key-file",
        type=Path,
        metavar="FILE",
        help="keys of those who send inference requests, one a line, of which each request must bring one; read again when it changes "
        "(beyond loopback it must be there)",
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get(DATABASE_URL_VARIABLE, ""),
        metavar="URL",
        help=f"postgresql+asyncpg://… instead of SQLite in the state directory (or ${DATABASE_URL_VARIABLE})",
    )
    parser.add_argument(
        "--agent",
        action=argparse.BooleanOptionalAction,
        help="whether to run this machine's node agent in this process (default: as long as there was no `switchgear init`: with TLS, "
        "jobs could read the CA's key and the admin's token)",
    )
    parser.add_argument("--node", default="", help="name of this machine's node (default: its host name)")
    parser.add_argument(
        "--sim-gpus", type=int, default=0, metavar="N", help="simulate N GPUs on this machine's node (default: none)"
    )
    parser.add_argument(
        "--sim-profile",
        choices=tuple(profiles.PROFILES),
        default=profiles.DEFAULT,
        help="the model of the simulated GPUs (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics",
        default=DEFAULT_METRICS,
        metavar="HOST:PORT",
        help="address of /metrics (default: %(default)s; port 0: a free one, which the state directory names)",
    )
    parser.add_argument(
        "--machines",
        default=DEFAULT_MACHINES,
        metavar="HOST:PORT",
        help="with TLS: gRPC address for agents and launchers with certificates (default: %(default)s)",
    )
    add_lease_arguments(parser)
    add_planner_argument(parser)
    add_engine_arguments(parser)
    add_collector_arguments(parser)
    add_policy_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; jobs and their launchers go on."""
    state_dir = (args.state_dir or default_state_dir()).absolute()
    settings = UpSettings(
        state_dir=state_dir,
        grpc=args.grpc,
        http=args.http,
        router=args.router,
        database_url=args.database_url,
        agent=args.agent,
        node=args.node or names.to_id(socket.gethostname()),
        sim_gpus=args.sim_gpus,
        sim_profile=args.sim_profile,
        policies=policies_of(args, configured_policies(args.policy)),
        metrics=args.metrics,
        machines=args.machines,
        router_key_file=args.router_key_file,
        timing=timing_from(args),
        planner=policy_from(args),
        collector=collector_config_from(args),
        slurm=slurm_from(args, state_dir),
    )
    loop.run(until_signal(serve(settings)))
    return exits.OK


async def serve(settings: UpSettings) -> None:
    """Runs the control plane until cancelled.

    Raises FailedPrecondition when the state directory or a port is in use, the state is of a newer version or an address
    is beyond loopback without TLS, or the router's without keys.
    """
    plane_settings = PlaneSettings(
        services=tuple(SERVICES),
        state_dir=settings.state_dir,
        database_url=settings.database_url or sqlite_url(settings.state_dir / "switchgear.db"),
        grpc=settings.grpc,
        http=settings.http,
        policies=settings.policies,
        metrics=settings.metrics,
        machines=settings.machines,
        timing=settings.timing,
        planner=settings.planner,
        collector=settings.collector,
        slurm=settings.slurm,
    )
    # Jobs' environments and logs are in it, and keys. One that is there already is left as its owner has made it.
    with only_one(settings.state_dir, "`switchgear up`", mode=0o700):
        async with (
            running(plane_settings) as plane,
            router.serve(
                router_settings := _router_settings(settings, plane.endpoints), plane.parts.registry
            ) as routing,
            asyncio.TaskGroup() as tasks,
        ):
            grpc, guard = plane.grpc, plane.parts.guard
            alone = guard.tls_files is None and settings.slurm is None
            with_agent = alone if settings.agent is None else settings.agent
            if with_agent:
                files = await guard.own_node(names.node_name(settings.node), settings.state_dir / "agent" / TLS_FOLDER)
                tasks.create_task(run_agent(_agent_settings(settings, plane.endpoints, files)))
            (settings.state_dir / ADDRESS_FILE).write_text(plane.metrics)
            write_running(settings.state_dir, Running(os.getpid(), grpc, plane.http, routing))
            print(
                f"Switchgear is up: gRPC {grpc}, REST {'https' if guard.http_ssl else 'http'}://{plane.http}/v1/nodes, "
                f"inference {'https' if router_settings.listen_tls else 'http'}://{routing}/v1/completions, "
                f"state {settings.state_dir}",
                file=sys.stderr,
            )
            for hint in _hints(settings, agent=with_agent, secure=guard.tls_files is not None):
                print(hint, file=sys.stderr)
            await asyncio.Event().wait()


def _hints(settings: UpSettings, *, agent: bool, secure: bool) -> Iterator[str]:
    if agent and not settings.sim_gpus and not (nvml.traces_of_driver() or amd.traces_of_driver()):
        yield "this node has no GPUs to offer; simulate some with --sim-gpus N"
    if agent and secure:
        yield (
            f"WARNING: jobs run here as {getpass.getuser()}, who owns {settings.state_dir}: whoever may submit a job (role operator) can "
            "read the CA's key and the admin's token there"
        )
    if secure and settings.agent is None:
        yield (
            "no node agent runs in this process, since its jobs could read the CA's key; as another user let `switchgear agent --join` "
            "run one with a token of `switchgear join-token`, or give --agent or --no-agent"
        )


def _router_settings(settings: UpSettings, endpoints: Endpoints) -> router.RouterSettings:
    beyond = not is_loopback(split_address(settings.router)[0])
    return router.RouterSettings(
        autoscaler=endpoints.autoscaler,
        listen=settings.router,
        tls=endpoints.tls,
        listen_tls=endpoints.tls if beyond else None,
        key_file=settings.router_key_file,
        grace_s=ROUTER_GRACE_S,
    )


def _agent_settings(settings: UpSettings, endpoints: Endpoints, files: TlsFiles | None) -> AgentSettings:
    return AgentSettings(
        node=settings.node,
        collector=endpoints.collector,
        scheduler=endpoints.scheduler,
        recovery=endpoints.recovery,
        autoscaler=endpoints.autoscaler,
        state_dir=settings.state_dir / "agent",
        sim_gpus=settings.sim_gpus,
        sim_profile=settings.sim_profile,
        tls=files,
    )
