"""`switchgear simulate snapshot`: what the planner goes by, of a control plane or from a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.planning import live_snapshot
from switchgear.planner.model import Snapshot
from switchgear.planner.records import snapshot_from_json, snapshot_to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n  switchgear simulate snapshot > now.json\n  switchgear simulate defragment --snapshot now.json"
    )


def main(args: argparse.Namespace) -> int:
    print(snapshot_to_json(*_live(args.server)).decode())
    return exits.OK


def add_source(parser: argparse.ArgumentParser) -> None:
    """The option of commands that simulate on a snapshot."""
    parser.add_argument(
        "--snapshot",
        type=Path,
        metavar="FILE",
        help="what `switchgear simulate snapshot` has printed (default: the live state)",
    )


def snapshot_of(args: argparse.Namespace) -> tuple[Snapshot, float]:
    """The snapshot that was asked for, and its time. Raises Invalid when a file holds something else."""
    return snapshot_from_json(args.snapshot.read_bytes()) if args.snapshot else _live(args.server)


def _live(server: str | None) -> tuple[Snapshot, float]:
    with connect(server) as client:
        return live_snapshot(client)
