"""`switchgear sim fleet`: many simulated nodes that stream to a collector, for demonstrations, dashboards and benchmarks."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.core.tls import TlsFiles
from switchgear.sim.fleet import processes
from switchgear.sim.fleet.counts import Counts, line, merged, summary
from switchgear.sim.fleet.settings import PROCESSES_MAX, FleetSettings, script_of

#: Between looks at what one of several processes tells.
_LOOK_S = 0.05
EXAMPLES = """examples:
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 100
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 4000 --seconds 60 --json
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 20 --faults faults.txt
  switchgear sim fleet --collector 127.0.0.1:7070 --nodes 64 --flood 2000 --json

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
        "--warm-up", type=float, default=0.0, metavar="S", help="count no latencies before (default: %(default)s)"
    )
    parser.add_argument(
        "--flood",
        type=int,
        default=0,
        metavar="BLOCKS",
        help="send so many blocks from each node as fast as they are acked, with times that end now; then end",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="P",
        help="among which the nodes are divided; one drives about 10,000 nodes (default: %(default)s)",
    )
    parser.add_argument(
        "--connects-per-s",
        type=float,
        default=500.0,
        metavar="N",
        help="nodes that come each second at the start (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=7, help="of all values (default: %(default)s)")
    for name, what in (
        ("ca", "whom to believe"),
        ("certificate", "of the node sim-0001, with --nodes 1: it lets none other in"),
        ("key", "of the certificate"),
    ):
        parser.add_argument(f"--tls-{name}", type=Path, metavar="FILE", help=f"with TLS: {what}, PEM")
    parser.add_argument("--json", action="store_true", help="print what was sent and acked as JSON at the end")


def main(args: argparse.Namespace) -> int:
    """Runs until SIGINT, SIGTERM, the end of `--seconds` or of the flood.

    Raises Invalid for what is out of its bounds, Unavailable when a flood loses a connection or a process dies.
    """
    if args.tls_ca is None and (args.tls_certificate or args.tls_key):
        raise Invalid(
            "--tls-certificate and --tls-key need --tls-ca: whom to believe", Reason.BAD_FIELD, field="tls-ca"
        )
    settings = FleetSettings(
        collector=args.collector,
        nodes=args.nodes,
        series=args.series,
        interval_s=args.interval,
        seconds=args.seconds,
        warm_up_s=args.warm_up,
        connects_per_s=args.connects_per_s,
        script=script_of(args.faults),
        seed=args.seed,
        blocks=args.flood,
        tls=TlsFiles(args.tls_ca, args.tls_certificate, args.tls_key) if args.tls_ca else None,
    )
    if not 1 <= args.processes <= min(PROCESSES_MAX, args.nodes):
        most = min(PROCESSES_MAX, args.nodes)
        raise Invalid(f"--processes must be 1 to {most}, at most one a node", Reason.BAD_FIELD, field="processes")
    began_s = time.monotonic()
    progress = _Progress(args.nodes)
    if args.processes == 1:
        processes.drive(settings, lambda counts: progress.tell([counts]))
    else:
        _several(settings, args.processes, progress)
    if args.json:
        told = {
            "nodes": args.nodes,
            "series": args.series,
            "interval_s": args.interval,
            "seconds": time.monotonic() - began_s,
        }
        print(json.dumps(told | summary(progress.total), indent=1))  # noqa: T201 - a command's output
    return 0


class _Progress:
    """A line a second."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._before, self._before_s = Counts(), time.monotonic()
        self.total = Counts()

    def tell(self, parts: list[Counts]) -> None:
        self.total = merged(parts)
        now_s = time.monotonic()
        print(  # noqa: T201 - a command's output
            line(self.total, self._before, self._nodes, max(1e-3, now_s - self._before_s)), file=sys.stderr
        )
        self._before, self._before_s = self.total, now_s


def _several(settings: FleetSettings, count: int, progress: _Progress) -> None:
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        fleet.stop()

    with processes.running(settings, count) as fleet:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        newest = dict.fromkeys(fleet.ends, Counts())
        running = set(fleet.ends)
        told_s = time.monotonic()
        while running:
            for end in fleet.ends:
                if end in running and end.poll(_LOOK_S):
                    try:
                        message: Counts | str = end.recv()
                    except EOFError:
                        running.discard(end)
                        if (code := fleet.exit_code(end)) and not stopped:
                            raise Unavailable(
                                f"a process of the fleet died, and its nodes with it (exit code {code}; -9 is most often a lack of "
                                "memory); start it again, with fewer nodes if need be",
                                Reason.INTERNAL,
                            ) from None
                        continue
                    if isinstance(message, str):
                        raise Unavailable(message, Reason.SERVER_UNREACHABLE)
                    newest[end] = message
            if time.monotonic() - told_s >= processes.TELL_S or not running:
                told_s = time.monotonic()
                progress.tell([*newest.values()])
