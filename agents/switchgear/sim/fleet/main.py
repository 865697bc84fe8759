"""`switchgear sim fleet`: many simulated nodes that stream to a collector, for demonstrations, dashboards and benchmarks."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

from switchgear.core.clock import SystemClock
from switchgear.core.process import until_signal
from switchgear.core.tls import TlsFiles
from switchgear.sim.fleet.counts import Counts
from switchgear.sim.fleet.fleet import Fleet
from switchgear.sim.fleet.settings import FleetSettings, script_of

_PROGRESS_S = 1.0
EXAMPLES = """examples:
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 100
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 4000 --seconds 60 --json
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 20 --faults faults.txt

A file of faults has lines such as
  at 10s node sim-0007 gpu 3 xid 79
  at 20s node sim-0008 gpu 0 thermal-throttle for 60s
  at 30s node sim-0010 silent for 60s
  at 30s node sim-0011 partition for 20s
  at 40s node sim-0012 clock-skew 30s for 1m
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `switchgear sim fleet`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--collector",
        default="127.0.0.1:7070",
        metavar="HOST:PORT",
        help="gRPC address of the collector (default: %(default)s)",
    )
    parser.add_argument("--nodes", type=int, default=20, metavar="N", help="simulated nodes (default: %(default)s)")
    parser.add_argument(
        "--series", type=int, default=320, metavar="N", help="of each node, of its 8 GPUs (default: %(default)s)"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="what happens to the nodes and when; see below")
    parser.add_argument("--seconds", type=float, metavar="S", help="end by itself (default: when it is stopped)")
    parser.add_argument(
        "--connects-per-s",
        type=float,
        default=500.0,
        metavar="N",
        help="nodes that come each second at the start (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=7, help="of all values (default: %(default)s)")
    for name, what in (("ca", "whom to believe"), ("certificate", "of all nodes"), ("key", "of the certificate")):
        parser.add_argument(f"--tls-{name}", type=Path, metavar="FILE", help=f"with TLS: {what}, PEM")
    parser.add_argument("--json", action="store_true", help="print what was sent and acked as JSON at the end")


def main(args: argparse.Namespace) -> int:
    """Runs until SIGINT, SIGTERM or the end of `--seconds`. Raises Invalid for what is out of its bounds."""
    settings = FleetSettings(
        collector=args.collector,
        nodes=args.nodes,
        series=args.series,
        interval_s=args.interval,
        seconds=args.seconds,
        connects_per_s=args.connects_per_s,
        script=script_of(args.faults),
        seed=args.seed,
        tls=TlsFiles(args.tls_ca, args.tls_certificate, args.tls_key) if args.tls_ca else None,
    )
    fleet = Fleet(settings, SystemClock())
    began_s = time.monotonic()
    asyncio.run(until_signal(_run(fleet, settings)))
    if args.json:
        print(json.dumps(summary(fleet, settings, time.monotonic() - began_s), indent=1))  # noqa: T201 - a command's output
    return 0


async def _run(fleet: Fleet, settings: FleetSettings) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.seconds), asyncio.TaskGroup() as tasks:
            tasks.create_task(fleet.run())
            tasks.create_task(_tell(fleet, settings))


async def _tell(fleet: Fleet, settings: FleetSettings) -> None:
    before, cpu_s, told = fleet.counts.blocks_sent, time.process_time(), ""
    while True:
        await asyncio.sleep(_PROGRESS_S)
        counts, now_cpu_s = fleet.counts, time.process_time()
        line = (
            f"{counts.connected} of {settings.nodes} connected, {(counts.blocks_sent - before) / _PROGRESS_S:.0f} blocks/s, "
            f"ack p99 {_ms(counts.latency_s(0.99))}, waiting {fleet.blocks_waiting}, lost {counts.blocks_lost}, "
            f"events {counts.events_acked} of {counts.events_made}, CPU {now_cpu_s - cpu_s:.2f} s"
        )
        if counts.last_error != told:
            told = counts.last_error
            line += f"; {told}"
        print(line, file=sys.stderr)  # noqa: T201 - a command's output
        before, cpu_s = counts.blocks_sent, now_cpu_s


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def summary(fleet: Fleet, settings: FleetSettings, seconds: float) -> dict[str, object]:
    """What was sent and acked; `*_s` are seconds, None where nothing was measured."""
    counts: Counts = fleet.counts
    cpu_s = time.process_time()
    return {
        "nodes": settings.nodes,
        "series": settings.series,
        "interval_s": settings.interval_s,
        "seconds": round(seconds, 3),
        "changed_share": round(fleet.changed_share, 4),
        "blocks_made": counts.blocks_made,
        "blocks_sent": counts.blocks_sent,
        "blocks_acked": counts.blocks_acked,
        "blocks_late": counts.blocks_late,
        "blocks_lost": counts.blocks_lost,
        "events_made": counts.events_made,
        "events_acked": counts.events_acked,
        "reconnects": counts.reconnects,
        "refusals": counts.refusals,
        "resyncs": counts.resyncs,
        "throttles": counts.throttles,
        "ticks_late": counts.ticks_late,
        "bytes_sent": counts.bytes_sent,
        "ack_p50_s": counts.latency_s(0.5),
        "ack_p99_s": counts.latency_s(0.99),
        "cpu_s": round(cpu_s, 3),
        "cpu_us_a_block": round(1e6 * cpu_s / counts.blocks_sent, 1) if counts.blocks_sent else None,
        "last_error": counts.last_error,
    }
