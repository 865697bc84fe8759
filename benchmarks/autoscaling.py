"""The bars of the autoscaling policy: it against every baseline at its best target in hindsight, on each trace and under each cold start.

    python benchmarks/autoscaling.py --traces DIR [--hard] [--only TEXT] [--jobs 2] [--cache DIR] [--json FILE]

DIR is searched for requests*.csv.gz; --hard adds the synthetic traces. Each is run with cold starts of 30 and 120 seconds, plain and with
a jitter of 0.5 and one start in ten failing. All begin with the fleet of static peak. One row a cell; a bar that is missed is named, and then
the exit code is 1:

  kept    99 % of the requests within both limits, wherever static peak reaches that
  cost    no more GPU-hours than the cheapest reactive baseline that reaches it
  static  at most 1.3 times the GPU-hours of static peak, on the traces in STATIC_BAR
  flaps   at most those of the HPA, and 2 an hour

What the baselines do is kept in --cache, by trace, conditions and the code that they depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import switchgear.autoscaler.baselines as baselines_folder
import switchgear.autoscaler.simulate as simulate_folder
from switchgear.autoscaler.baselines.registry import OURS, REACTIVE, scaler
from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.observation import Scaler, Slo
from switchgear.autoscaler.simulate.conditions import Conditions
from switchgear.autoscaler.simulate.replica import ServiceModel
from switchgear.autoscaler.simulate.score import Score
from switchgear.autoscaler.simulate.search import best_target, static_peak
from switchgear.autoscaler.simulate.synthetic import KINDS, PREFIX, synthetic
from switchgear.autoscaler.simulate.trace import Rates, Trace, read
from switchgear.autoscaler.simulate.world import run

#: By the folder of the trace.
STATIC_BAR = ("azure-llm-2023-conv", "mooncake-conversation")
STATIC_RATIO_MAX, FLAPS_MORE_MAX = 1.3, 2.0
#: Of simulate/: they write no result.
NO_RESULT = frozenset({"synthetic.py", "trace.py", "rates.py", "__init__.py"})


@dataclass(frozen=True)
class Cell:
    source: str
    cold_start_s: float
    hard: bool

    def conditions(self, trace: Trace, seed: int) -> Conditions:
        model, slo = ServiceModel(), Slo()
        if trace.in_seconds:
            model, slo = ServiceModel.of_slots(1), Slo(ttft_s=None, tpot_s=None, wait_s=2.0)
        jitter, fail = (0.5, 0.1) if self.hard else (0.0, 0.0)
        return Conditions(model, slo, self.cold_start_s, jitter, fail, seed, start_unix_s=trace.start_unix_s)

    @property
    def name(self) -> str:
        return self.source.removeprefix(PREFIX) if self.source.startswith(PREFIX) else Path(self.source).parent.name


@dataclass(frozen=True)
class Result:
    """Of one policy in one cell. target: None: it has none, or none reaches the objective. A static peak has its replicas there."""

    attainment: float
    gpu_hours: float
    flaps_per_h: float
    target: float | None = None
    decide_ms: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, metavar="DIR")
    parser.add_argument("--hard", action="store_true", help="the synthetic traces too")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="traces with this in their name, several with commas"
    )
    parser.add_argument("--policy", default=OURS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "switchgear-autoscaling", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}; give 1 or more")
    sources = [str(path) for path in sorted(args.traces.rglob("requests*.csv.gz"))] if args.traces else []
    sources += [PREFIX + kind for kind in KINDS] if args.hard else []
    wanted = args.only.split(",")
    cells = [
        cell
        for source in sources
        for cold_start_s in (30.0, 120.0)
        for hard in (False, True)
        for cell in [Cell(source, cold_start_s, hard)]
        if any(text in cell.name for text in wanted)
    ]
    if not cells:
        parser.error("no trace; give --traces DIR with requests*.csv.gz in it, or --hard")
    args.cache.mkdir(parents=True, exist_ok=True)
    missed, told = 0, []
    with ProcessPoolExecutor(args.jobs) as pool:
        for cell, ours, others in list(_submitted(pool, cells, args)):
            row, bars = _judged(cell, ours.result(), {name: found.result() for name, found in others.items()})
            missed += "missed" in bars
            told.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"{len(cells)} cells, {missed} with a bar missed")
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))
    return 1 if missed else 0


def _submitted(
    pool: ProcessPoolExecutor, cells: list[Cell], args: argparse.Namespace
) -> Iterator[tuple[Cell, Future[Result], dict[str, Future[Result]]]]:
    for cell in cells:
        others = {
            name: pool.submit(_baseline, name, cell, args.seed, args.cache) for name in ("static-peak", *REACTIVE)
        }
        yield cell, pool.submit(_policy, args.policy, cell, args.seed, args.cache), others


def _judged(cell: Cell, ours: Result, others: dict[str, Result]) -> tuple[dict[str, str], str]:
    """The row, and its bars."""
    peak = others.pop("static-peak")
    reaching = {name: one for name, one in others.items() if one.target is not None}
    cheapest = min(reaching, key=lambda name: reaching[name].gpu_hours, default=None)
    bars = {
        "kept": None if peak.target is None else ours.attainment >= Slo().objective,
        "cost": None if cheapest is None else ours.gpu_hours <= reaching[cheapest].gpu_hours,
        "static": ours.gpu_hours <= STATIC_RATIO_MAX * peak.gpu_hours if cell.name in STATIC_BAR else None,
        "flaps": ours.flaps_per_h <= others["hpa"].flaps_per_h + FLAPS_MORE_MAX,
    }
    verdict = " ".join(name for name, held in bars.items() if held is False)
    best = f"{cheapest}:{reaching[cheapest].target:.3g} {reaching[cheapest].gpu_hours:.2f}" if cheapest else "none"
    row = {
        cell.name: f"{cell.cold_start_s:.0f}s{' jitter+fail' if cell.hard else ' plain'}:",
        "kept": f"{100 * ours.attainment:.2f}%",
        "gpuh": f"{ours.gpu_hours:.2f}",
        "static": f"x{ours.gpu_hours / peak.gpu_hours:.2f} of {peak.target or 0:.0f}" if peak.gpu_hours else "none",
        "cheapest": best,
        "flaps": f"{ours.flaps_per_h:.2f} hpa {others['hpa'].flaps_per_h:.2f}",
        "decide": f"{ours.decide_ms:.2f}ms",
        "": f"missed {verdict}" if verdict else "held",
    }
    return row, row[""]


@cache
def _trace(source: str) -> Trace:
    trace = synthetic(source) if source.startswith(PREFIX) else read(Path(source))
    assert not isinstance(trace, Rates)
    return trace


def _policy(name: str, cell: Cell, seed: int, folder: Path) -> Result:
    trace = _trace(cell.source)
    conditions = _begin(cell, seed, folder)
    begin_s = time.process_time()
    outcome = run(trace.requests(), scaler(name), conditions)
    score = Score.of(outcome, conditions)
    # The simulation is in it too: a bound from above.
    decide_ms = (time.process_time() - begin_s) * 1e3 / sum(outcome.causes.values())
    return Result(score.attainment, score.gpu_hours, score.flaps_per_h, None, decide_ms)


def _begin(cell: Cell, seed: int, folder: Path) -> Conditions:
    """With the fleet of static peak; where there is none, with 8."""
    peak = _baseline("static-peak", cell, seed, folder).target
    return replace(cell.conditions(_trace(cell.source), seed), initial=8 if peak is None else int(peak))


def _baseline(name: str, cell: Cell, seed: int, folder: Path) -> Result:
    """From the cache, if it is there."""
    trace = _trace(cell.source)
    if name == "static-peak":
        # Replicas that are READY from the start know no cold start.
        cell, seed = Cell(cell.source, 0.0, hard=False), 0
    conditions = cell.conditions(trace, seed)
    arrays = (trace.arrival_s, trace.input_tokens, trace.output_tokens)
    key = hashlib.sha256(repr((name, conditions, _code(name))).encode() + b"".join(one.tobytes() for one in arrays))
    path = folder / f"{key.hexdigest()[:32]}.json"
    if path.exists():
        return Result(**json.loads(path.read_text()))
    result = _found(name, cell, seed, folder)
    path.with_suffix(f".{os.getpid()}").write_text(json.dumps(vars(result)))
    path.with_suffix(f".{os.getpid()}").rename(path)
    return result


def _found(name: str, cell: Cell, seed: int, folder: Path) -> Result:
    begin_s = time.monotonic()
    trace = _trace(cell.source)
    conditions = cell.conditions(trace, seed)
    target: float | None
    made: Scaler
    if name == "static-peak":
        peak = static_peak(trace, conditions)
        if peak is None:
            return Result(0.0, 0.0, 0.0, None)
        target, made, conditions = float(peak), Static(peak), replace(conditions, initial=peak)
    else:
        conditions = _begin(cell, seed, folder)
        target = best_target(trace, REACTIVE[name].make, conditions)
        if target is None and name != "hpa":
            return Result(0.0, 0.0, 0.0)
        made = REACTIVE[name].make(REACTIVE[name].target if target is None else target)
    score = Score.of(run(trace.requests(), made, conditions), conditions)
    took_s = time.monotonic() - begin_s
    told = f"{cell.name} {cell.cold_start_s:g} s{' hard' if cell.hard else ''}, {name}"
    print(f"{told}: {target} {score.gpu_hours:.2f} GPU-hours, {took_s:.0f} s", file=sys.stderr, flush=True)
    return Result(score.attainment, score.gpu_hours, score.flaps_per_h, target)


@cache
def _code(name: str) -> str:
    """A digest of what a baseline's result depends on, beside the trace and the conditions."""
    folders = [Path(next(iter(folder.__path__))) for folder in (simulate_folder, baselines_folder)]
    shared = {"load.py", "hpa.py"}
    files = [path for path in sorted(folders[0].glob("*.py")) if path.name not in NO_RESULT]
    files += [
        folders[1] / one
        for one in sorted({*shared, "static.py" if name == "static-peak" else f"{name.replace('-', '_')}.py"})
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
