"""`switchgear simulate autoscaling`: what a policy would have done on recorded requests, and what it would have cost."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from switchgear.autoscaler.baselines.registry import OURS, REACTIVE, scaler
from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.decision_log import Head, Record, head_line, record_line
from switchgear.autoscaler.observation import Decision, Observation, Scaler
from switchgear.autoscaler.simulate.conditions import Conditions
from switchgear.autoscaler.simulate.foresight import oracle
from switchgear.autoscaler.simulate.score import Score
from switchgear.autoscaler.simulate.search import best_target, static_peak
from switchgear.autoscaler.simulate.synthetic import KINDS, PREFIX
from switchgear.autoscaler.simulate.trace import Trace
from switchgear.autoscaler.simulate.world import Watch, run
from switchgear.cli import exits
from switchgear.cli.output import print_json, print_line, print_table, tell
from switchgear.cli.simulate.autoscaling_flags import (
    add_conditions,
    add_source,
    conditions_of,
    from_one,
    trace_of,
)
from switchgear.core.errors import Invalid, Reason, ResourceExhausted

STATIC, ORACLE = "static-peak", "oracle"
NAMES = (OURS, STATIC, *REACTIVE, ORACLE)
BEST = "best"
#: Seconds between two lines of progress.
TOLD_S = 10.0
#: READY at the start where no fixed fleet reaches the objective.
INITIAL = 8

_POLICIES = {
    OURS: "ours",
    STATIC: "the smallest fixed fleet that keeps the promise, which only hindsight knows",
    **{name: f"--target: {one.knob}" for name, one in REACTIVE.items()},
    ORACLE: "knows the trace: what each minute needs, a cold start ahead; what is left to gain",
}
EXAMPLES = f"""policies:
{chr(10).join(f"  {name:<11}  {text}" for name, text in _POLICIES.items())}

traces of our own:
{chr(10).join(f"  {PREFIX}{name:<12}  {kind.text}" for name, kind in KINDS.items())}

examples:
  switchgear simulate autoscaling --trace requests.csv.gz --policy all --target best --jobs 2
  switchgear simulate autoscaling --trace requests.csv.gz --policy {OURS} --cold-start 30 --cold-jitter 0.5 --cold-fail 0.1 --slo-ttft 2 --json
  switchgear simulate autoscaling --trace requests.csv.gz --policy {OURS},hpa:8 --cold-start 120 --throttle-at 1800
  switchgear simulate autoscaling --trace images.csv --concurrency 4 --slo-wait 5
  switchgear simulate autoscaling --trace 00000001.jsonl --policy {OURS} --decisions log.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_source(parser)
    parser.add_argument(
        "--policy",
        default=OURS,
        metavar="NAME",
        help="one, several with commas, or all; NAME:TARGET has a target of its own (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        metavar="X",
        help=f"of the reactive ones, or {BEST}: the cheapest that reaches the objective (default: each its own)",
    )
    parser.add_argument("--jobs", type=from_one, default=1, metavar="N", help="processes (default: %(default)d)")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="write the decision log, for `services replay`")
    add_conditions(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class Asked:
    """A policy to be run. target: a number as text, `BEST`, or empty for its default."""

    name: str
    target: str = ""


@dataclass(frozen=True)
class Ran:
    """target: None: it has none. note: what a reader should know."""

    policy: str
    target: float | None
    score: Score | None
    note: str = ""


def main(args: argparse.Namespace) -> int:
    asked = _asked(args.policy, args.target or "")
    if args.target and not any(one.name in REACTIVE for one in asked):
        raise Invalid(f"--target is for {', '.join(REACTIVE)}; --policy names none of them", Reason.BAD_FIELD)
    if args.decisions and (len(asked) > 1 or asked[0].name == STATIC):
        raise Invalid("--decisions is the log of one policy that decides; name one with --policy", Reason.BAD_FIELD)
    trace = trace_of(args)
    conditions = conditions_of(args, trace)
    peak = static_peak(trace, conditions)
    if args.initial is None:
        initial = INITIAL if peak is None else peak
        conditions = replace(conditions, initial=max(args.min, min(initial, args.max)))
    static = _static(trace, conditions, peak)
    others = [one for one in asked if one.name != STATIC]
    ran = {one.policy: one for one in _all(trace, conditions, others, args)} | {STATIC: static}
    found = [_json(ran[one.name], static.score) for one in asked]
    if args.json:
        head = {
            "trace": trace.name,
            "requests": len(trace),
            "static_peak_replicas": peak,
            "initial_replicas": conditions.initial,
            "cold_start_s": conditions.cold_start_s,
            "cold_jitter": conditions.cold_jitter,
            "cold_fail": conditions.cold_fail,
            "seed": conditions.seed,
        }
        print_json({**head, **found[0]} if len(found) == 1 else {**head, "policies": found})
        return exits.OK
    none = f"none up to {conditions.max_replicas}"
    print_line(f"{trace.name}: {len(trace)} requests; static peak {none if peak is None else peak}")
    _print(found)
    return exits.OK


def judged(trace: Trace, conditions: Conditions, asked: Asked, log: Path | None = None) -> Ran:
    """One policy, at its target. Raises Invalid when the target is none."""
    name, target, note = asked.name, None, ""
    policy: Scaler | None
    if name == ORACLE:
        tell(f"{name}: looks for a plan")
        policy = oracle(trace, conditions)
        note = "" if policy else "no plan reaches the objective"
    elif name not in REACTIVE:
        policy = scaler(name)
    else:
        baseline = REACTIVE[name]
        target = float(asked.target) if asked.target not in ("", BEST) else baseline.target
        if asked.target == BEST:
            tell(f"{name}: looks for its best target")
            best = best_target(trace, baseline.make, conditions)
            target, note = (target, "no target reaches the objective: its default") if best is None else (best, "")
        policy = baseline.make(target)
    if policy is None:
        return Ran(name, target, None, note)
    with log.open("w", encoding="utf-8") if log else nullcontext() as file:
        if file:
            file.write(head_line(Head(trace.name, name if target is None else f"{name}:{target!r}")) + "\n")
        watch = _watch(name, trace, file.write if file else None)
        score = Score.of(run(trace.requests(), policy, conditions, watch), conditions)
    return Ran(name, target, score, note)


def _watch(name: str, trace: Trace, write: Callable[[str], object] | None) -> Watch:
    told_s, span_h = time.monotonic(), float(trace.arrival_s[-1]) / 3600

    def watch(now_s: float, seen: Observation, decision: Decision) -> None:
        nonlocal told_s
        if write:
            write(record_line(Record(now_s, seen, decision)) + "\n")
        if time.monotonic() - told_s >= TOLD_S:
            told_s = time.monotonic()
            tell(f"{name}: {now_s / 3600:.1f} of {span_h:.1f} hours")

    return watch


def _all(trace: Trace, conditions: Conditions, asked: Sequence[Asked], args: argparse.Namespace) -> Iterator[Ran]:
    jobs = min(args.jobs, len(asked))
    if jobs <= 1:
        for one in asked:
            yield judged(trace, conditions, one, args.decisions)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            for future in [pool.submit(judged, trace, conditions, one) for one in asked]:
                yield future.result()
        except BrokenProcessPool:
            raise ResourceExhausted(
                "a process was ended from outside, maybe for want of memory; give fewer --jobs or a part of the trace",
                Reason.LIMIT_EXCEEDED,
            ) from None
        except KeyboardInterrupt:
            # Nobody waits for what they look for.
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _end_with_parent() -> None:
    """In a worker: a parent that was killed takes it along, since no more work comes and nobody reads what it finds."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _static(trace: Trace, conditions: Conditions, peak: int | None) -> Ran:
    if peak is None:
        return Ran(STATIC, None, None, "no fixed fleet reaches the objective")
    given = replace(conditions, initial=peak)
    return Ran(STATIC, peak, Score.of(run(trace.requests(), Static(peak), given), given))


def _json(ran: Ran, static: Score | None) -> dict[str, object]:
    told: dict[str, object] = {"policy": ran.policy, "target": ran.target, "note": ran.note}
    score = ran.score
    if score is None:
        return told
    times = {"ttft_s": score.ttft_s, "wait_s": score.wait_s, "e2e_s": score.e2e_s}
    return told | {
        "attainment": round(score.attainment, 7),
        "gpu_hours": round(score.gpu_hours, 4),
        "ratio_to_static_peak": round(score.gpu_hours / static.gpu_hours, 4) if static and static.gpu_hours else None,
        **{name: {"p50": _finite(p50), "p99": _finite(p99)} for name, (p50, p99) in times.items()},
        "starts": score.starts,
        "failed_starts": score.failed_starts,
        "flaps_per_hour": round(score.flaps_per_h, 3),
        "held_max": score.held_max,
        "ready_max": score.ready_max,
        "causes": dict(score.causes),
    }


def _finite(seconds: float) -> float | None:
    return round(seconds, 4) if math.isfinite(seconds) else None


def _print(found: Sequence[Mapping[str, object]]) -> None:
    def part(name: str, quantile: str) -> Callable[[Mapping[str, object]], object]:
        def of(one: Mapping[str, object]) -> object:
            inner = one.get(name)
            return inner[quantile] if isinstance(inner, dict) else None

        return of

    columns: Mapping[str, Callable[[Mapping[str, object]], object]] = {
        "POLICY": lambda one: one["policy"],
        "TARGET": lambda one: one["target"],
        "KEPT_PCT": lambda one: _percent(one.get("attainment")),
        "GPU_HOURS": lambda one: one.get("gpu_hours"),
        "TO_STATIC": lambda one: one.get("ratio_to_static_peak"),
        "TTFT_P50_S": part("ttft_s", "p50"),
        "TTFT_P99_S": part("ttft_s", "p99"),
        "STARTS": lambda one: one.get("starts"),
        "FLAPS_PER_H": lambda one: one.get("flaps_per_hour"),
        "READY_MAX": lambda one: one.get("ready_max"),
        "HELD_MAX": lambda one: one.get("held_max"),
        "NOTE": lambda one: one["note"],
    }
    print_table(tuple(columns), ([_cell(column(one)) for column in columns.values()] for one in found), "no policy")


def _percent(fraction: object) -> float | None:
    return 100 * fraction if isinstance(fraction, float) else None


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)


def _asked(text: str, target: str) -> tuple[Asked, ...]:
    """Raises Invalid when there is no such policy, or the target is none."""
    words = NAMES if text == "all" else tuple(dict.fromkeys(text.split(",")))
    found = []
    for word in words:
        name, _, own = word.partition(":")
        if name not in NAMES:
            raise Invalid(
                f"there is no policy {name!r}; there are {', '.join(NAMES)}, and all for all of them",
                Reason.BAD_FIELD,
                policy=name,
            )
        if name in REACTIVE:
            asked = Asked(name, own or target)
            if asked.target not in ("", BEST):
                scaler(f"{name}:{asked.target}")  # says what is wrong with it
            found.append(asked)
        elif own:
            raise Invalid(f"policy {name} has no target; give {name} alone", Reason.BAD_FIELD, policy=word)
        else:
            found.append(Asked(name))
    if len({one.name for one in found}) < len(found):
        raise Invalid("a policy is named twice; give each once", Reason.BAD_FIELD, policy=text)
    return tuple(found)
