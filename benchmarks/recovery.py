"""Faults of training, from the fault to the next step, beside torchrun and nvidia-resiliency-ext's ft_launcher, in one run.

    python benchmarks/recovery.py [--only ROW ...] [--ranks 2 4] [--rounds 5] [--json FILE]

All launchers run the same script (`steps.py`) in turns, gloo on CPU; times come from the script itself, not from a launcher. Each round
is printed, then the medians and the bars. A peer that a bar does not compare with gets one round of that row, and who does not see a
fault is waited for 20 s. The newest ft_launcher that installs beside the same torch is fetched into `build/peers` at the first run.
The rows `node` and `silent` have a control plane, two nodes and a spare one on this machine, and no counterpart.
Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from faultbench.cluster import CLUSTER_ROWS
from faultbench.contenders import Contender, contenders
from faultbench.measured import Bar, Measured, Row, median, told
from faultbench.rows import ROWS
from faultbench.runs import NotInTimeError

ALL = (*ROWS, *CLUSTER_ROWS)


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores ({model}), load {load}, Python {platform.python_version()}, {platform.system()}"


def estimate_s(rows: Sequence[Row], peers: int, ranks: Sequence[int], rounds: int) -> float:
    """Twice the ranks take about half as long again on cores that are short."""
    one = sum(row.round_s[0] * rounds + row.round_s[1] * peers * _peer_rounds(row, rounds) for row in rows)
    return one * sum(1 + (count - 2) / 4 for count in ranks)


def _peer_rounds(row: Row, rounds: int) -> int:
    return rounds if row.peer_rounds is None else min(row.peer_rounds, rounds)


def measure(row: Row, contender: Contender, ranks: int) -> Measured:
    try:
        return row.measure(contender, ranks)
    except NotInTimeError as error:
        print(f"    {contender.name}: {error}", file=sys.stderr)
        return Measured(math.inf)


def run_row(row: Row, who: Sequence[Contender], ranks: int, rounds: int) -> tuple[dict[str, list[Measured]], list[Bar]]:
    print(f"\n{row.name}, {ranks} ranks: {row.fault}; seconds {row.figure}")
    found: dict[str, list[Measured]] = {}
    for number in range(rounds):
        for place, contender in enumerate(who):
            if place and number >= _peer_rounds(row, rounds):
                continue
            one = measure(row, contender, ranks)
            found.setdefault(contender.name, []).append(one)
            facts = "  ".join(f"{name}={value}" for name, value in one.facts.items())
            print(f"  round {number + 1}  {contender.name:12}{told(one.seconds):>12}  {facts}", flush=True)
    medians = {name: median(seen) for name, seen in found.items()}
    bars = list(row.judge(found[who[0].name], medians))
    print("  median   " + "   ".join(f"{name} {told(seconds)}" for name, seconds in medians.items()))
    for bar in bars:
        print(f"  {'held  ' if bar.held else 'MISSED'}  {bar.claim}: {bar.detail}", flush=True)
    return found, bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ALL], metavar="ROW", default=[])
    parser.add_argument("--ranks", nargs="+", type=int, choices=(2, 4), default=[2, 4], help="(default: 2 and 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it has started, as on Ctrl-C
    rows = [row for row in ALL if not args.only or row.name in args.only]
    who, missing = contenders()
    print(machine())
    print("; ".join([*(f"{contender.name} {contender.version}" for contender in who), *missing]))
    print(f"about {estimate_s(rows, len(who) - 1, args.ranks, args.rounds) / 60:.0f} minutes", flush=True)
    report, missed = [], 0
    for ranks in args.ranks:
        for row in rows:
            found, bars = run_row(row, who, ranks, args.rounds)
            missed += sum(not bar.held for bar in bars)
            rounds = {name: [_plain(one) for one in seen] for name, seen in found.items()}
            verdicts = [{"claim": bar.claim, "held": bar.held, "detail": bar.detail} for bar in bars]
            report.append({"row": row.name, "ranks": ranks, "rounds": rounds, "bars": verdicts})
    print(f"\n{'every bar held' if not missed else f'{missed} bars MISSED'}; {machine()}")
    if args.json:
        versions = {contender.name: contender.version for contender in who}
        whole = {"machine": machine(), "versions": versions, "missing": missing, "rows": report}
        args.json.write_text(json.dumps(whole, indent=2) + "\n")
    return 1 if missed else 0


def _plain(one: Measured) -> dict[str, float | int | str | bool | None]:
    """JSON has no infinity: null is what did not come in time."""
    flat = {"seconds": one.seconds, **one.facts}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in flat.items()
    }


if __name__ == "__main__":
    sys.exit(main())
