"""`switchgear serve SERVICE`: one service of the control plane as a process of its own, on a PostgreSQL that all of them share."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.collector_flags import add_collector_arguments, collector_config_from
from switchgear.cli.compose import DEFAULT_METRICS, ENDPOINTS, PlaneSettings, running
from switchgear.cli.engine_flags import add_engine_arguments, policies_of, slurm_from
from switchgear.cli.lease_flags import add_lease_arguments, timing_from
from switchgear.cli.planner_flags import add_planner_argument, policy_from
from switchgear.cli.policies import add_policy_argument, configured_policies
from switchgear.cli.state import DEFAULT_HTTP, DEFAULT_MACHINES, Running, default_state_dir, write_running
from switchgear.core import loop
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.process import until_signal
from switchgear.core.rpc import split_address, target

#: Where a service listens, and the others look for it, when nobody says otherwise.
DEFAULT_PORTS = {"collector": 7071, "scheduler": 7072, "recovery": 7073, "autoscaler": 7074, "gateway": 7075}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", choices=ENDPOINTS, help="which one this process is")
    _add(
        parser,
        "--database-url",
        "",
        "postgresql+asyncpg://USER@HOST/DATABASE, the same for all; a URL with a password belongs into the environment",
    )
    _add(parser, "--grpc", "", "gRPC address to listen on (default: the service's below; port 0: a free one)")
    for name in ENDPOINTS:
        _add(
            parser,
            f"--{name}",
            f"127.0.0.1:{DEFAULT_PORTS[name]}",
            f"gRPC address of the {name}, or several of which one acts",
        )
    _add(parser, "--http", DEFAULT_HTTP, "gateway: REST address to listen on")
    _add(parser, "--machines", DEFAULT_MACHINES, "gateway with TLS: address at which callers bring certificates")
    parser.add_argument(
        "--state-dir",
        type=Path,
        help="folder with the certificates of `switchgear init` and, under the same path on every node, of the logs of jobs "
        "(default: $SWITCHGEAR_STATE_DIR or ~/.local/state/switchgear)",
    )
    _add(parser, "--metrics", DEFAULT_METRICS, "address of /metrics; port 0: a free one")
    add_lease_arguments(parser)
    add_planner_argument(parser)
    add_engine_arguments(parser)
    add_collector_arguments(parser)
    add_policy_argument(parser)


def _add(parser: argparse.ArgumentParser, flag: str, default: str, what: str) -> None:
    """A flag that may also come from the environment: `--database-url` as SWITCHGEAR_DATABASE_URL."""
    variable = f"SWITCHGEAR_{flag.removeprefix('--').replace('-', '_').upper()}"
    shown = f"; default {default}" if default else ""
    metavar = "URL" if flag == "--database-url" else "HOST:PORT"
    parser.add_argument(
        flag, default=os.environ.get(variable, default), metavar=metavar, help=f"{what} (or ${variable}{shown})"
    )


def main(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. A second process of the same service stands by and takes over."""
    loop.run(until_signal(serve(args.service, settings_from(args))))
    return exits.OK


def settings_from(args: argparse.Namespace) -> PlaneSettings:
    """Raises FailedPrecondition without a PostgreSQL, Invalid for what is no address or policy."""
    if not args.database_url.startswith("postgresql"):
        raise FailedPrecondition(
            "services apart share one PostgreSQL: name it with --database-url postgresql+asyncpg://USER@HOST/DATABASE or "
            "SWITCHGEAR_DATABASE_URL; on SQLite all services run in one process, `switchgear up`",
            Reason.DATABASE_UNUSABLE,
        )
    elsewhere = {name: getattr(args, name) for name in ENDPOINTS}
    for address in elsewhere.values():
        split_address(address)
        target(address)
    state_dir = (args.state_dir or default_state_dir()).absolute()
    return PlaneSettings(
        services=(args.service,),
        state_dir=state_dir,
        database_url=args.database_url,
        grpc=args.grpc or elsewhere[args.service],
        http=args.http,
        machines=args.machines,
        elsewhere=elsewhere,
        policies=policies_of(args, configured_policies(args.policy)),
        metrics=args.metrics,
        timing=timing_from(args),
        planner=policy_from(args),
        collector=collector_config_from(args),
        slurm=slurm_from(args, state_dir),
    )


async def serve(service: str, settings: PlaneSettings) -> None:
    """Runs one service until cancelled. Raises as `compose.running` does."""
    async with running(settings) as plane:
        rest = ""
        if plane.http:
            scheme = "https" if plane.parts.guard.http_ssl else "http"
            rest = f", REST {scheme}://{plane.http}/v1/nodes"
            # Commands on this machine find their control plane there.
            settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_running(settings.state_dir, Running(os.getpid(), plane.grpc, plane.http))
        print(f"Switchgear's {service} is up: gRPC {plane.grpc}{rest}, metrics {plane.metrics}", file=sys.stderr)
        await asyncio.Event().wait()
