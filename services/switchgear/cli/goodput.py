"""`switchgear goodput`: where the GPU time of a job went, and what faults cost all of them. The report at a job's end as well."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from switchgear.cli import exits
from switchgear.cli.client import Client, connect
from switchgear.cli.output import last, print_json, print_line, print_table, tell
from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason, SwitchgearError
from switchgear.v1 import recovery_service_pb2 as recovery

_EPILOG = """examples:
  switchgear goodput llama
  switchgear goodput --by account
  switchgear goodput --by user --json | jq '.groups[] | {key, goodput}'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "job", nargs="?", help="one job, from its submission to now or to its end; all that are kept when left out"
    )
    parser.add_argument("--by", choices=("account", "user", "queue"), help="all jobs, told apart by whose they are")


def main(args: argparse.Namespace) -> int:
    if args.job and args.by:
        raise Invalid("--by tells all jobs apart: leave the job away", Reason.BAD_FIELD, field="by")
    with connect(args.server) as client:
        if args.job:
            found = of_job(client, qualified(args.job, "jobs"))
            if args.json:
                print_json(found)
            else:
                print_line(found.name.removesuffix("/goodput"))
                for line in found.report.splitlines():
                    print_line(line)
            return exits.OK
        by = args.by.upper() if args.by else None
        reliability = client.recovery.GetReliability(recovery.GetReliabilityRequest(group_by=by))
    if args.json:
        print_json(reliability)
    elif args.by:
        _print_groups(args.by, reliability.groups)
    else:
        _print(reliability)
    return exits.OK


def tell_at_end(server: str | None, job: str) -> None:
    """The report of `jobs/{job}` on stderr; silence when there is none: it is no reason for a job to fail."""
    try:
        with connect(server) as client:
            tell_report(of_job(client, job).report)
    except SwitchgearError:
        return


def tell_report(report: str) -> None:
    """On stderr, line by line."""
    for line in report.splitlines():
        tell(f"switchgear: {line}")


def of_job(client: Client, name: str) -> recovery.JobGoodput:
    """Of `jobs/{job}`. Raises NotFound while recovery does not know it."""
    return client.recovery.GetJobGoodput(recovery.GetJobGoodputRequest(name=f"{name}/goodput"))


def _print_groups(by: str, groups: Sequence[recovery.GoodputGroup]) -> None:
    """GPU hours: all, then those that waited, made new steps, and were lost to faults; goodput is the share of new steps in all."""
    rows = []
    for group in groups:
        booked = {bucket.bucket: bucket.gpu_seconds for bucket in group.buckets}
        lost_s = sum(cost.lost_gpu_seconds for cost in group.costs)
        hours = (group.gpu_seconds, booked.get("queue", 0.0), booked.get("productive", 0.0), lost_s)
        by_cause = f"{group.costs[0].cause} {group.costs[0].lost_gpu_seconds / 3600:.3f}" if lost_s else "-"
        ettr = f"{group.ettr:.1%}" if group.HasField("ettr") else "-"
        key = last(group.key) or "-"
        rows.append((key, group.jobs, *(f"{s / 3600:.3f}" for s in hours), f"{group.goodput:.1%}", ettr, by_cause))
    head = (by.upper(), "JOBS", "GPU HOURS", "QUEUED", "PRODUCTIVE", "LOST", "GOODPUT", "ETTR", "MOST LOST BY")
    print_table(head, rows, "no jobs so far")


def _print(found: recovery.Reliability) -> None:
    ettr = f", ETTR {found.ettr:.1%}" if found.HasField("ettr") else ""
    jobs = "1 job" if found.jobs == 1 else f"{found.jobs} jobs"
    print_line(f"{jobs}, {found.gpu_seconds / 3600:.2f} GPU h: goodput {found.goodput:.1%}{ettr}")
    if found.HasField("mttf_seconds"):
        back = f", {found.mttr_seconds:.1f} s until the next new step" if found.HasField("mttr_seconds") else ""
        print_line(f"one incident each {found.mttf_seconds:.0f} s of productive time{back}")
    print()
    print_table(
        ("CAUSE", "NODE", "INCIDENTS", "GPU HOURS LOST", "SECONDS TO A NEW STEP"),
        (
            (
                cost.cause,
                last(cost.node) or "-",
                cost.incidents,
                f"{cost.lost_gpu_seconds / 3600:.3f}",
                f"{cost.mttr_seconds:.1f}" if cost.HasField("mttr_seconds") else "-",
            )
            for cost in found.costs
        ),
        "no faults so far",
    )
