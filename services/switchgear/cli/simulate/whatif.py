"""`switchgear simulate whatif`: what the planner would decide if things were different."""

from __future__ import annotations

import argparse

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import print_json, print_line
from switchgear.cli.simulate.snapshot import add_source, snapshot_of
from switchgear.planner.changes import GRAMMAR, parse
from switchgear.planner.whatif import whatif
from switchgear.v1alpha import planner_service_pb2 as pb

EXAMPLES = """examples:
  switchgear simulate whatif 'set jobs/llama tasks=4 near=leaf:preferred'
  switchgear simulate whatif 'end jobs/old' 'open nodes/gpu-07'
  switchgear simulate whatif 'submit jobs/try gpus=8 tasks=16 queue=queues/research'   # would it start at once?
  switchgear simulate whatif 'add 4 nodes/gpu-01'

Nothing is changed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{GRAMMAR}\n{EXAMPLES}"
    parser.add_argument("changes", nargs="+", metavar="CHANGE", help="what would be different, made in this order")
    add_source(parser)


def main(args: argparse.Namespace) -> int:
    if args.snapshot:
        snapshot, now_s = snapshot_of(args)
        difference = whatif(snapshot, parse(args.changes), now_s)
        found = pb.WhatIfResponse(
            starts=difference.starts,
            starts_lost=difference.starts_lost,
            preempted=difference.preempted,
            kept=difference.kept,
            text=difference.text,
        )
    else:
        with connect(args.server) as client:
            found = client.planner.WhatIf(pb.WhatIfRequest(changes=args.changes))
    if args.json:
        print_json(found)
    else:
        print_line(found.text)
    return exits.OK
