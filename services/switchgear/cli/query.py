"""`switchgear query`: recent values of any series on all nodes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import last, local_time, print_json, print_line, print_table, tell
from switchgear.cli.show import SAME_FOR_A_GPU
from switchgear.v1alpha import telemetry_service_pb2 as pb

EXAMPLES = """examples:
  switchgear query DCGM_FI_DEV_GPU_TEMP
  switchgear query 'DCGM_FI_DEV_GPU_UTIL{node=~"gpu-0.*", gpu="3"}' --last 10m
  switchgear query 'DCGM_FI_DEV_POWER_USAGE{modelName!~".*H100.*"}' --last 90m --step 10m --reduction max
  switchgear query '{source="agent", __name__=~"node_infiniband_.*"}' --json

A selector is PromQL's; node and source are labels too. The last two minutes are kept as they came, 114 by one value a minute.
"""

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BARS = "▁▂▃▄▅▆▇█"
_CELLS_MAX = 40
_REDUCTIONS = ("last", "min", "max", "mean")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("selector", metavar="SELECTOR", help="which series, as in PromQL")
    parser.add_argument("--last", type=_duration_s, metavar="TIME", help="how far back: 90s, 10m, 2h (default: 2m)")
    parser.add_argument(
        "--step", type=_duration_s, metavar="TIME", help="one value for each such time (default: 1s for 2m, else 1m)"
    )
    parser.add_argument(
        "--reduction",
        choices=_REDUCTIONS,
        default="last",
        help="what becomes of the values within a step (default: last)",
    )


def main(args: argparse.Namespace) -> int:
    request = pb.QueryRequest(
        selector=args.selector,
        step_seconds=args.step,
        reduction=args.reduction.upper(),
        range_seconds=args.last,
    )
    with connect(args.server) as client:
        found = client.telemetry.Query(request)
    if found.unanswered:
        tell(f"without the nodes of {', '.join(found.unanswered)}, which did not answer; see that it runs")
    if args.json:
        print_json(found)
        return exits.OK
    if found.series:
        print_line(f"from {local_time(found.start_time)} on, each {found.step_seconds:g} s: {args.reduction}")
    several = len({(one.metric, one.source) for one in found.series}) > 1
    told_apart = _told_apart(found.series)
    print_table(
        ("NODE", *(("METRIC", "SOURCE") if several else ()), "LABELS", "MIN", "MEAN", "MAX", "LAST", "UNIT", "VALUES"),
        (
            (
                last(one.node),
                *((one.metric, one.source) if several else ()),
                ",".join(f"{name}={one.labels[name]}" for name in told_apart if name in one.labels) or "-",
                *_numbers(one.values),
                one.unit or "-",
                sparkline(one.values),
            )
            for one in found.series
        ),
        "no such series; `switchgear nodes NODE` lists what a node tells",
    )
    return exits.OK


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, or for the mean of a few neighbours, from the least to the largest of them; a dot where none is known."""
    width = max(1, -(-len(values) // _CELLS_MAX))
    cells = [_mean(values[at : at + width]) for at in range(0, len(values), width)]
    known = [cell for cell in cells if math.isfinite(cell)]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    return "".join(
        "·" if not math.isfinite(cell) else _BARS[int((cell - low) / span * (len(_BARS) - 1) + 0.5) if span else 0]
        for cell in cells
    )


def _numbers(values: Sequence[float]) -> list[str]:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ["unknown"] * 4
    return [f"{value:.6g}" for value in (min(known), _mean(known), max(known), known[-1])]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _told_apart(series: Sequence[pb.QueriedSeries]) -> list[str]:
    """Labels that are not the same on all; what follows from the GPU's index is left out."""
    names = {name for one in series for name in one.labels}
    if "gpu" in names:
        names -= SAME_FOR_A_GPU
    differ = [name for name in names if len({one.labels.get(name) for one in series}) > 1]
    return sorted(differ, key=lambda name: (name != "gpu", name))


def _duration_s(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 10m or 2h")
    return float(found[1]) * _SECONDS[found[2]]
