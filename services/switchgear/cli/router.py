"""`switchgear router`: the router of inference requests as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.state import DEFAULT_GRPC
from switchgear.core import metrics
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
        help="where clients find /v1/completions, and Prometheus /metrics (default: %(default)s; port 0: a free one)",
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
    for name, text in (
        ("ca", "whom to believe: autoscaler and replicas"),
        ("certificate", "who this router is, to autoscaler, replicas and clients"),
        ("key", "the certificate's private key"),
    ):
        parser.add_argument(f"--tls-{name}", type=Path, metavar="FILE", help=text)


def main(args: argparse.Namespace) -> int:
    """Routes until SIGTERM or SIGINT, then finishes what is in flight."""
    if args.hold_seconds <= 0 or args.in_flight_per_replica < 1:
        raise Invalid("--hold-seconds and --in-flight-per-replica must be above 0", Reason.BAD_FIELD)
    tls = _tls(args.tls_ca, args.tls_certificate, args.tls_key)
    settings = router.RouterSettings(
        autoscaler=args.autoscaler,
        listen=args.listen,
        tls=tls,
        listen_tls=tls,
        limits=Limits(hold_s=args.hold_seconds, in_flight_per_replica=args.in_flight_per_replica),
    )
    asyncio.run(until_signal(_serve(settings)))
    return exits.OK


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> TlsFiles | None:
    if ca is None and certificate is None and key is None:
        return None
    if ca is None or certificate is None or key is None:
        raise Invalid("--tls-ca, --tls-certificate and --tls-key belong together; give all or none", Reason.BAD_FIELD)
    return TlsFiles(ca, certificate, key)


async def _serve(settings: router.RouterSettings) -> None:
    async with router.serve(settings, metrics.new_registry("router")) as address:
        scheme = "https" if settings.listen_tls else "http"
        print(f"routing {scheme}://{address}/v1/completions", file=sys.stderr)
        await asyncio.Event().wait()
