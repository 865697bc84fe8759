"""`switchgear explain`: why a job waits and what would start it, or why it is where it is."""

from __future__ import annotations

import argparse
import shlex

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import local_time, print_json, print_line
from switchgear.cli.show import qualified
from switchgear.v1alpha import planner_service_pb2 as pb

EXAMPLES = """examples:
  switchgear explain llama
  switchgear explain jobs/llama --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("job", help="one that waits or runs")


def main(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        found = client.planner.ExplainJob(pb.ExplainJobRequest(name=qualified(args.job, "jobs")))
    if args.json:
        print_json(found)
        return exits.OK
    cause = f"{found.causes[0].cause}: " if found.causes else ""
    print_line(f"{found.job}: {cause}{found.text}")
    for also in found.causes[1:]:
        print_line(f"also {also.cause}: {also.text}")
    if found.causes:
        print_line(f"expected to start: {_expected(found)}")
    if found.changes:
        print_line("it would start now, cheapest first:")
    for change in found.changes:
        print_line(f"  {change.text}")
        print_line(f"    switchgear simulate whatif {shlex.quote(change.change)}")
    return exits.OK


def _expected(found: pb.Explanation) -> str:
    """Four of five outcomes lie between low and high; a time that is not there may never come."""
    start = local_time(found.start) if found.HasField("start") else ""
    low = local_time(found.start_low) if found.HasField("start_low") else ""
    high = local_time(found.start_high) if found.HasField("start_high") else ""
    if low and high:
        return f"{start or 'at an unknown time'}, four times of five between {low} and {high}"
    if low:
        return f"{start or 'at an unknown time'}, nine times of ten not before {low}"
    return start or "cannot be said"
