"""`switchgear simulate queue`: how long jobs of a trace would have waited, under the planner and under published policies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from switchgear.cli import exits
from switchgear.cli.output import print_json, print_table, tell
from switchgear.core.errors import Invalid, Reason
from switchgear.planner.baselines.queue import LAS_RESTART_S, policies
from switchgear.planner.model import Ended
from switchgear.planner.simulate.planned import LEVELS, Planned, history
from switchgear.planner.simulate.queue import QueueOutcome, replay
from switchgear.planner.simulate.scores import QueueScore, RunTimeScore, quantiles_by_size
from switchgear.planner.simulate.trace import Trace, read

OURS = "switchgear"
NAMES = ("fifo", "skip-ahead", "easy", "las", "sjf", OURS)
#: Jobs between two lines of progress.
TOLD_JOBS = 2000
DAY_S = 24 * 3600.0

EXAMPLES = f"""policies:
  fifo        strictly in order of submission
  skip-ahead  in order of submission, what does not fit lets others pass
  easy        EASY backfill, told the exact run times
  las         least attained service (Tiresias): stops jobs for others, at --restart-seconds each
  sjf         shortest job first, told the exact run times
  {OURS}  the planner as it is, which learns run times from what ended; jobs of the file before START are its history

columns of the file: timestamp, duration (seconds), num_gpus, and if there is one cluster: jobs of one cluster are taken for alike.

examples:
  switchgear simulate queue --jobs jobs.csv --nodes 64 --gpus-per-node 8 --start 2017-10-09 --days 14 --policy all
  switchgear simulate queue --jobs jobs.csv --nodes 64 --gpus-per-node 8 --start 2017-10-09 --days 14 --policy easy {OURS} --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--jobs", type=Path, required=True, metavar="FILE", help="CSV file of jobs")
    parser.add_argument("--nodes", type=_count, required=True, metavar="N", help="nodes of the cluster")
    parser.add_argument("--gpus-per-node", type=_count, default=8, metavar="G", help="GPUs of a node (default 8)")
    parser.add_argument("--start", type=_day, required=True, metavar="DATE", help="first day, UTC: 2017-10-09")
    parser.add_argument(
        "--days", type=_days, required=True, metavar="D", help="days of submissions; all run to their end"
    )
    parser.add_argument(
        "--policy", nargs="+", action="extend", type=_policies, metavar="NAME", help="one, several or all (default all)"
    )
    parser.add_argument(
        "--restart-seconds",
        type=_seconds,
        default=LAS_RESTART_S,
        metavar="S",
        help=f"what each stop costs a job under las (default {LAS_RESTART_S:g}); no work is lost",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    full = _read(args.jobs)
    start_s = args.start.timestamp()
    inside = (full.submit_s >= start_s) & (full.submit_s < start_s + args.days * DAY_S)
    if not inside.any():
        first, last = (datetime.fromtimestamp(at, UTC).date() for at in (full.submit_s[0], full.submit_s[-1]))
        raise Invalid(
            f"no job was submitted in {args.days:g} days from {args.start.date()}; the file has {first} to {last}",
            Reason.BODY_INVALID,
        )
    trace = full.only(np.flatnonzero(inside))
    before = history(full.only(np.flatnonzero(full.submit_s < start_s)), start_s)
    load = float((trace.run_s * trace.gpus).sum()) / (args.nodes * args.gpus_per_node * args.days * DAY_S)
    found: dict[str, dict[str, object]] = {}
    for name in dict.fromkeys(name for names in args.policy or [NAMES] for name in names):
        found[name] = _scores(name, trace, before, args)
    if args.json:
        print_json({"jobs": len(trace), "load": load, "policies": found})
    else:
        _print(found)
    return exits.OK


def _scores(name: str, trace: Trace, before: list[Ended], args: argparse.Namespace) -> dict[str, object]:
    size = {"nodes": args.nodes, "gpus_per_node": args.gpus_per_node}
    progress = _progress(name, len(trace))
    if name != OURS:
        restart_s = args.restart_seconds if name == "las" else 0.0
        outcome = replay(trace, policies(trace)[name], **size, restart_s=restart_s, progress=progress)
        return _camel(asdict(QueueScore.of(outcome)))
    planned = Planned(trace, before, **size)
    outcome = replay(trace, planned, **size, progress=progress)
    return {**_camel(asdict(QueueScore.of(outcome))), "runTimes": _run_times(outcome, planned, before)}


def _run_times(outcome: QueueOutcome, planned: Planned, before: list[Ended]) -> dict[str, object]:
    run_s = outcome.trace.run_s
    plain = quantiles_by_size(outcome, before, LEVELS)
    return {
        "levels": list(LEVELS),
        "learned": _camel(asdict(RunTimeScore.of(run_s, planned.quantiles_s, LEVELS))),
        "bySize": _camel(asdict(RunTimeScore.of(run_s, plain, LEVELS))),
    }


def _print(found: dict[str, dict[str, object]]) -> None:
    columns = {
        "JCT_H": "jctHoursMean",
        "WAIT_H": "waitHoursMean",
        "P50": "waitHoursP50",
        "P99": "waitHoursP99",
        "MAX": "waitHoursMax",
        "LARGE_WAIT_H": "largeWaitHoursMean",
        "LARGE_P99": "largeWaitHoursP99",
    }
    print_table(
        ("POLICY", *columns, "PREEMPTIONS"),
        (
            (name, *(_figure(score[key]) for key in columns.values()), score["preemptions"])
            for name, score in found.items()
        ),
        "no policy",
    )
    told = found.get(OURS, {}).get("runTimes")
    if isinstance(told, dict):
        print()
        keys = ("coverage", "below", "above", "pinballSeconds")
        names = {"learned": OURS, "bySize": "quantiles by size"}
        rows = ((text, *(_figure(told[name][key]) for key in keys)) for name, text in names.items())
        print_table(("RUN TIMES", "COVERAGE", "BELOW", "ABOVE", "PINBALL_S"), rows, "")


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


def _camel(values: dict[str, object]) -> dict[str, object]:
    return {name[0] + name.title().replace("_", "")[1:]: value for name, value in values.items()}


def _progress(name: str, jobs: int) -> Callable[[int, float], None]:
    def told(arrived: int, now_s: float) -> None:
        if arrived % TOLD_JOBS == 0 or arrived == jobs:
            tell(f"{name}: {arrived} of {jobs} jobs came, it is {datetime.fromtimestamp(now_s, UTC):%Y-%m-%d %H:%M}")
            sys.stderr.flush()

    return told


def _read(path: Path) -> Trace:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return read(file)
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no text: {error.reason}", Reason.BODY_INVALID) from error
    except Invalid as error:
        raise Invalid(f"{path}: {error}", Reason.BODY_INVALID) from error


def _policies(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if "all" in names:
        return NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        raise argparse.ArgumentTypeError(f"no policy {', '.join(unknown)}; there are {', '.join(NAMES)} and all")
    return tuple(names)


def _day(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is no day; write it as 2017-10-09') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f'"{text}" is no whole number from 1 to 100000')
    return int(text)


def _days(text: str) -> float:
    days = _number(text)
    if not 0 < days <= 3660:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of days above 0')
    return days


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds <= DAY_S:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds from 0 on')
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
