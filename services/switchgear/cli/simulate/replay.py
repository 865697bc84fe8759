"""`switchgear simulate replay`: whether the planner decides today as it did then."""

from __future__ import annotations

import argparse
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.output import print_json, print_line
from switchgear.planner.model import Seat
from switchgear.planner.plan import plan
from switchgear.planner.records import decisions_from_json, decisions_to_json
from switchgear.scheduler.decision_log import LoggedPlan, read

#: Differences that are told one by one.
SHOWN_MAX = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n  switchgear simulate replay ~/.local/state/switchgear/scheduler/plans\n\n"
        "exit code 1: some decisions are others than they were"
    )
    parser.add_argument("log", type=Path, help="a file that the scheduler has written, or the folder of them")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    plans, starts, preemptions, other = 0, 0, 0, list[str]()
    for logged in read(args.log):
        plans += 1
        decided = decisions_from_json(logged.decisions)
        starts, preemptions = starts + len(decided.starts), preemptions + len(decided.preemptions)
        if (difference := _difference(logged)) and len(other) < SHOWN_MAX:
            other.append(difference)
    if args.json:
        print_json({"plans": plans, "starts": starts, "preemptions": preemptions, "differences": other})
    else:
        for difference in other:
            print_line(difference)
        verdict = f"{len(other)} or more decide otherwise today" if other else "each decides the same again"
        print_line(f"{plans} plans with {starts} starts and {preemptions} preemptions: {verdict}")
    return exits.JOB_FAILED if other else exits.OK


def _difference(logged: LoggedPlan) -> str:
    """Empty when the planner decides the same."""
    again = plan(logged.snapshot, logged.now_s)
    if decisions_to_json(again) == logged.decisions:
        return ""
    then = decisions_from_json(logged.decisions)
    started = {start.job.name: start.seats for start in then.starts}
    now = {start.job.name: start.seats for start in again.starts}
    for job in sorted({*started, *now}):
        if started.get(job) != now.get(job):
            return f"at {logged.now_s:.3f}: {job} was on {_where(started.get(job))}, and would be on {_where(now.get(job))}"
    return f"at {logged.now_s:.3f}: the same starts; preemptions or reasons differ"


def _where(seats: tuple[Seat, ...] | None) -> str:
    return ", ".join(f"{seat.node} {list(seat.gpus)}" for seat in seats) if seats else "nothing"
