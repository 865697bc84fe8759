"""`switchgear goodput`: where the GPU time of a job went, and what faults cost all of them. The report at a job's end as well."""

from __future__ import annotations

import argparse

from switchgear.cli import exits
from switchgear.cli.client import Client, connect
from switchgear.cli.output import last, print_json, print_line, print_table, tell
from switchgear.cli.show import qualified
from switchgear.core.errors import SwitchgearError
from switchgear.v1 import recovery_service_pb2 as recovery


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", help="one job, from its submission to now or to its end; all that are kept when left out"
    )


def main(args: argparse.Namespace) -> int:
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
        reliability = client.recovery.GetReliability(recovery.GetReliabilityRequest())
    if args.json:
        print_json(reliability)
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
