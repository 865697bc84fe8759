"""`switchgear simulate placement`: how full a fleet gets by a packing policy."""

from __future__ import annotations

import argparse
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.output import print_json, print_table, tell
from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import Node, Task
from switchgear.planner.simulate.openb import nodes_of, tasks_of
from switchgear.planner.simulate.placement import POLICIES, Run, inflate, marks, means

#: A run takes seconds; more are a mistake.
SEEDS_MAX = 1000
LOAD_MAX = 10.0

EXAMPLES = """examples:
  switchgear simulate placement --nodes nodes.csv --pods pods.csv --policy switchgear --seeds 42-51 --load 1.3 --json
  switchgear simulate placement --nodes nodes.csv --pods pods.csv --policy all
  switchgear simulate placement --nodes nodes.csv --pods pods.csv --policy switchgear,fgd --seeds 42

The inflation experiment of FGD (USENIX ATC 2023): all pods in random order, then pods drawn from the list, until --load times the GPUs have been
asked for. Nobody leaves, and what fits nowhere is dropped. What is told is the GPUs allocated, in percent, at a load of 100 % and at the last.
fgd is given the mix of the list; switchgear learns it from what arrives. Decisions a second are those of one processor.

nodes.csv: columns sn, cpu_milli, memory_mib, gpu, model
pods.csv:  columns cpu_milli, memory_mib, num_gpu, gpu_milli (of one GPU; empty: all of it), gpu_spec (models, A|B; may be missing)
--json:    {"policy", "allocated_pct": {"100": mean, "130": mean}, "per_seed": {"42": {"100": ..., "130": ...}, ...}, "decisions_per_s"};
           of several policies a list of these as "policies"
"""


@dataclass(frozen=True)
class Outcome:
    """Of one policy. runs: by seed. seconds: of one processor, for all decisions."""

    policy: str
    runs: dict[int, Run]
    seconds: float

    @property
    def decisions_per_s(self) -> int:
        return round(sum(len(run.placed) for run in self.runs.values()) / max(self.seconds, 1e-9))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--nodes", type=Path, required=True, metavar="FILE", help="the nodes, as CSV")
    parser.add_argument("--pods", type=Path, required=True, metavar="FILE", help="the pods, as CSV")
    parser.add_argument(
        "--policy",
        default="switchgear",
        metavar="NAME",
        help=f"{', '.join(POLICIES)}; several with commas, or all (default: %(default)s)",
    )
    parser.add_argument("--seeds", default="42-51", metavar="A-B", help="one run each (default: %(default)s)")
    parser.add_argument(
        "--load",
        type=float,
        default=1.3,
        help="GPUs asked for, in those that there are (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    policies, seeds = policies_of(args.policy), seeds_of(args.seeds)
    if not (math.isfinite(args.load) and 0 < args.load <= LOAD_MAX):
        raise Invalid(f"--load is {args.load:g}; give a number above 0 and up to {LOAD_MAX:g}", Reason.BAD_FIELD)
    with args.nodes.open(encoding="utf-8-sig", newline="") as file:
        nodes = nodes_of(file, str(args.nodes))
    with args.pods.open(encoding="utf-8-sig", newline="") as file:
        pods = tasks_of(file, str(args.pods))
    outcomes = [run(nodes, pods, policy, seeds, args.load) for policy in policies]
    if args.json:
        told = [to_json(outcome, args.load) for outcome in outcomes]
        print_json(told[0] if len(told) == 1 else {"policies": told})
        return exits.OK
    at = marks(args.load)
    print_table(
        ("POLICY", *(f"ALLOCATED_AT_{mark}_PCT" for mark in at), "DECISIONS_PER_S"),
        (
            (
                one.policy,
                *(f"{value:.2f}" for value in means(one.runs.values(), args.load).values()),
                one.decisions_per_s,
            )
            for one in outcomes
        ),
        "no policy",
    )
    return exits.OK


def run(nodes: tuple[Node, ...], pods: tuple[Task, ...], policy: str, seeds: range, load: float) -> Outcome:
    """The runs of one policy; each is told on stderr when it is over."""
    runs: dict[int, Run] = {}
    seconds = 0.0
    for seed in seeds:
        begin_s = time.process_time()
        runs[seed] = inflate(nodes, pods, policy, seed, load)
        seconds += time.process_time() - begin_s
        figures = ", ".join(f"{value:.2f} % at {mark} %" for mark, value in means([runs[seed]], load).items())
        tell(f"{policy}, seed {seed}: {figures} ({len(runs)} of {len(seeds)})")
    return Outcome(policy, runs, seconds)


def to_json(outcome: Outcome, load: float) -> dict[str, object]:
    """As `--help` describes it."""
    return {
        "policy": outcome.policy,
        "load": load,
        "allocated_pct": means(outcome.runs.values(), load),
        "per_seed": {str(seed): means([run], load) for seed, run in outcome.runs.items()},
        "decisions_per_s": outcome.decisions_per_s,
    }


def policies_of(text: str) -> tuple[str, ...]:
    """Raises Invalid when there is no such policy."""
    if text == "all":
        return tuple(POLICIES)
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in POLICIES:
            raise Invalid(
                f"there is no policy {name!r}; there are {', '.join(POLICIES)}, and all for all of them",
                Reason.BAD_FIELD,
                policy=name,
            )
    return names


def seeds_of(text: str) -> range:
    """Raises Invalid when it is neither A nor A-B."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last < first + SEEDS_MAX:
        raise Invalid(
            f"--seeds is {text!r}; give one whole number, or two as 42-51, of at most {SEEDS_MAX} seeds",
            Reason.BAD_FIELD,
            seeds=text,
        )
    return range(first, last + 1)
