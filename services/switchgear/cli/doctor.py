"""`switchgear doctor`: what the agent can and cannot see on this node, and what helps."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from switchgear.agent.doctor.check import State
from switchgear.agent.doctor.report import Report, examine
from switchgear.cli import exits
from switchgear.cli.output import print_json, print_line
from switchgear.core.errors import Invalid, Reason

#: A problem was found; the same number as a failed job's, for `switchgear doctor --gpu && ...`.
PROBLEM_FOUND = 1
_WIDTH = 120
_SLOWEST = 5

_EPILOG = """Run it on the node, as the user that the agent runs as. It only reads, and does not wake a GPU that is asleep.

examples:
  switchgear doctor --gpu
  switchgear doctor --gpu --json | jq '.checks[] | select(.state == "problem")'

exit code: 0 when all is as it should be, 1 when a problem was found"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--gpu", action="store_true", help="this node should have GPUs: to find none is a problem")
    parser.add_argument("--json", action="store_true", help="print JSON, with every metric and call of each GPU")
    parser.add_argument(
        "--deadline-s",
        type=float,
        default=10.0,
        metavar="S",
        help="how long one call of the driver may take before it counts as hanging (default: 10)",
    )


def main(args: argparse.Namespace) -> int:
    if not 0 < args.deadline_s <= 600:
        raise Invalid("deadline_s must be more than 0 and at most 600 seconds", Reason.BAD_FIELD, field="deadline_s")
    report = examine(gpus_expected=args.gpu, deadline_s=args.deadline_s)
    if args.json:
        print_json(report.as_json())
    else:
        _print(report)
    return PROBLEM_FOUND if report.problems else exits.OK


def _print(report: Report) -> None:
    wheres = [f"{numbers(check.gpus)}{check.topic}" for check in report.checks]
    indent = " " * (len("problem") + 2 + max(map(len, wheres)) + 2)
    for check, where in zip(report.checks, wheres, strict=True):
        head = f"{check.state.value:<7}  {where}".ljust(len(indent))
        _wrapped(head, indent, check.text)
        if check.remedy and check.state is not State.OK:
            _wrapped(f"{indent}-> ", f"{indent}   ", check.remedy)
    slowest = list(report.slowest_ms().items())[:_SLOWEST]
    if slowest:
        _wrapped("slowest calls: ", "  ", ", ".join(f"{name} {took_ms:.1f} ms" for name, took_ms in slowest))
    print_line(_verdict(report.problems))


def _wrapped(first: str, rest: str, text: str) -> None:
    for line in textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False):
        print_line(line)


def _verdict(problems: int) -> str:
    return "no problem found" if not problems else f"{problems} problem{'s' if problems > 1 else ''} found"


def numbers(gpus: Sequence[int]) -> str:
    """Whose a check is, before its topic: `GPU 0-2,5: ` of (0, 1, 2, 5), nothing of none."""
    ranges = list[list[int]]()
    for gpu in gpus:
        if ranges and ranges[-1][1] == gpu - 1:
            ranges[-1][1] = gpu
        else:
            ranges.append([gpu, gpu])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return f"GPU {text}: " if text else ""
