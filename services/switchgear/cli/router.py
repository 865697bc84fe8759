"""`switchgear router`: the router of inference requests as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from switchgear.cli import exits
from switchgear.cli.state import DEFAULT_GRPC
from switchgear.cli.tls_flags import add_tls_arguments, tls_from
from switchgear.core import metrics, rpc
from switchgear.core.errors import Invalid, Reason
from switchgear.core.process import until_signal
from switchgear.core.tls import TlsFiles
from switchgear.serve import router
from switchgear.serve.switchboard import Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoscaler", default=DEFAULT_GRPC, metavar="HOST:PORT", help="its gRPC address (default: %(default)s)"
    )
    parser.add_argument(
        "--listen",
        default=router.DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help="where clients find /v1/completions (default: %(default)s; port 0: a free one)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys of clients, one a line, of which each request must bring one; read again when it changes "
        "(beyond loopback it must be there)",
    )
    parser.add_argument(
        "--metrics",
        default="",
        metavar="HOST:PORT",
        help="address of /metrics (default: that of --listen; with --api-key-file: none)",
    )
    limits = Limits()
    parser.add_argument(
        "--hold-seconds",
        type=float,
        default=limits.hold_s,
        metavar="SECONDS",
        help="how long a request may wait for a replica (default: %(default)g)",
    )
    parser.add_argument(
        "--in-flight-per-replica",
        type=int,
        default=limits.in_flight_per_replica,
        metavar="N",
        help="requests that a replica gets at a time; others are held here (default: %(default)s)",
    )
    add_tls_arguments(
        parser,
        ca="whom to believe: autoscaler and replicas",
        certificate="who this router is, to autoscaler, replicas and clients",
    )


def main(args: argparse.Namespace) -> int:
    """Routes until SIGTERM or SIGINT, then finishes what is in flight."""
    if args.hold_seconds <= 0 or args.in_flight_per_replica < 1:
        raise Invalid("--hold-seconds and --in-flight-per-replica must be above 0", Reason.BAD_FIELD)
    tls = tls_from(args)
    settings = router.RouterSettings(
        autoscaler=args.autoscaler,
        listen=args.listen,
        tls=tls,
        listen_tls=tls,
        key_file=args.api_key_file,
        limits=Limits(hold_s=args.hold_seconds, in_flight_per_replica=args.in_flight_per_replica),
    )
    asyncio.run(until_signal(_serve(settings, args.metrics)))
    return exits.OK


async def _serve(settings: router.RouterSettings, metrics_at: str) -> None:
    registry = metrics.new_registry("router")
    with _metrics(registry, metrics_at, settings.tls):
        async with router.serve(settings, registry) as address:
            scheme = "https" if settings.listen_tls else "http"
            print(f"routing {scheme}://{address}/v1/completions", file=sys.stderr)
            await asyncio.Event().wait()


@contextmanager
def _metrics(registry: CollectorRegistry, address: str, tls: TlsFiles | None) -> Iterator[None]:
    if not address:
        yield
        return
    beyond = not rpc.is_loopback(rpc.split_address(address)[0])
    server = metrics.MetricsServer.of(registry, address, tls if beyond else None)
    try:
        print(f"metrics at {server.address}", file=sys.stderr)
        yield
    finally:
        server.close()
