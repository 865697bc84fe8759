"""How full the planner gets a fleet, against other policies, and what a decision costs with every node scored.

    python benchmarks/planner_placement.py --nodes nodes.csv --pods pods.csv [--seeds 42-51] [--variants [--variant-seeds 42-43]]

The files are those of `switchgear simulate placement`. --variants: other mixes made from the list as well: how often each kind of pod comes, or which
GPU models it accepts, is changed at about the same GPUs in total. A variant is one list, whatever the seeds. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from switchgear.cli.simulate.placement import seeds_of
from switchgear.planner.fleet import Fleet
from switchgear.planner.mix import Mix
from switchgear.planner.model import Node, Task
from switchgear.planner.packing import Packer
from switchgear.planner.simulate.openb import nodes_of, tasks_of
from switchgear.planner.simulate.placement import POLICIES, Run, inflate, means

LOAD = 1.3
#: share: percent of the GPU pods that ask for a share. multi: percent of the GPUs asked for by pods of several. spec: percent of the GPU pods that
#: accept some models only, named as often as the GPUs that could hold them; skew: the small models more often than that. cpu: percent of the
#: pods that need no GPU.
VARIANTS = (
    *(f"share{percent}" for percent in (40, 60, 80, 100)),
    *(f"multi{percent}" for percent in (20, 30, 40, 50)),
    *(f"spec{percent}" for percent in (10, 20, 25, 33)),
    "skew33",
    *(f"cpu{percent}" for percent in (0, 5, 20, 25, 50, 60)),
)


def kind(pod: Task) -> str:
    """Of the four that a variant tells apart."""
    if pod.gpu_milli:
        return "share"
    return "cpu" if pod.gpus == 0 else "whole" if pod.gpus == 1 else "multi"


def variant(name: str, pods: Sequence[Task], nodes: Sequence[Node], seed: int = 7) -> list[Task]:
    """Another list of pods."""
    random = np.random.default_rng(seed)
    stem = name.rstrip("0123456789")
    part = int(name[len(stem) :]) / 100
    of: dict[str, list[Task]] = {"cpu": [], "share": [], "whole": [], "multi": []}
    for pod in pods:
        of[kind(pod)].append(pod)
    on_gpus = len(pods) - len(of["cpu"])

    def draw(among: list[Task], count: int) -> list[Task]:
        return [among[at] for at in random.integers(len(among), size=count)]

    if stem == "cpu":
        return draw(of["cpu"], round(on_gpus * part / (1 - part))) + of["share"] + of["whole"] + of["multi"]
    if stem == "share":
        shares = round(on_gpus * part)
        return of["cpu"] + draw(of["share"], shares) + draw(of["whole"] + of["multi"], on_gpus - shares)
    if stem == "multi":
        total = sum(pod.gpu_share for pod in pods)
        mean = sum(pod.gpus for pod in of["multi"]) / len(of["multi"])
        single = of["share"] + of["whole"]
        keep = min((1 - part) * total / sum(pod.gpu_share for pod in single), 1.0)
        chosen = random.permutation(len(single))[: round(keep * len(single))]
        return of["cpu"] + draw(of["multi"], round(total * part / mean)) + [single[at] for at in chosen]
    return _bound(pods, nodes, part, 0.5 if stem == "skew" else 1.0, random)


def _bound(
    pods: Sequence[Task], nodes: Sequence[Node], part: float, power: float, random: np.random.Generator
) -> list[Task]:
    """So many of the GPU pods accept one or two models only."""
    models = sorted({node.gpu_model for node in nodes})

    def weights(gpus: int) -> list[float]:
        held = [sum(node.gpus for node in nodes if node.gpu_model == model and node.gpus >= gpus) for model in models]
        scaled = [float(count) ** power for count in held]
        return [one / sum(scaled) for one in scaled]

    by_size = {gpus: weights(gpus) for gpus in {max(pod.gpus, 1) for pod in pods}}
    found = []
    for pod in pods:
        if pod.gpu_share and random.random() < part:
            named = random.choice(models, size=1 if random.random() < 0.7 else 2, p=by_size[max(pod.gpus, 1)])
            found.append(replace(pod, gpu_models=frozenset(str(model) for model in named)))
        else:
            found.append(pod)
    distinct: dict[Task, Task] = {}
    return [distinct.setdefault(pod, pod) for pod in found]


def figures(nodes: tuple[Node, ...], pods: Sequence[Task], policy: str, seeds: range) -> tuple[dict[str, float], float]:
    """Percent allocated at 100 and at 130 % load, and decisions a second."""
    runs: list[Run] = []
    begin_s = time.process_time()
    for seed in seeds:
        print(f"{policy}, seed {seed}", file=sys.stderr)
        runs.append(inflate(nodes, pods, policy, seed, LOAD))
    return means(runs, LOAD), sum(len(run.placed) for run in runs) / (time.process_time() - begin_s)


def costs_ms(nodes: Sequence[Node], pods: Sequence[Task], count: int) -> tuple[float, float, float, float]:
    """On so many nodes, full to 90 %: the first score of all, of another task, again after one seat, and a copy of the packer."""
    fleet = Fleet([replace(nodes[at % len(nodes)], name=f"n{at}") for at in range(count)])
    packer = Packer(fleet, Mix.of((pod, float(times)) for pod, times in Counter(pods).items()))
    random = np.random.default_rng(1)
    capacity = sum(node.gpus for node in fleet.nodes)
    taken = 0.0
    while taken < 0.9 * capacity:
        pod = pods[int(random.integers(len(pods)))]
        row = packer.best(pod)
        if row >= 0:
            packer.take(packer.seat(pod, row), pod)
            taken += pod.gpu_share
    packer = Packer(fleet, replace(packer.mix))
    shares = list(dict.fromkeys(pod for pod in pods if pod.gpu_milli))

    def ms(run: Callable[[], object]) -> float:
        begin_s = time.process_time()
        run()
        return 1e3 * (time.process_time() - begin_s)

    first, other = ms(lambda: packer.best(shares[0])), ms(lambda: packer.best(shares[1]))
    packer.take(packer.seat(shares[1], packer.best(shares[1])), shares[1])
    return first, other, ms(lambda: packer.best(shares[0])), ms(packer.copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=Path, required=True)
    parser.add_argument("--pods", type=Path, required=True)
    parser.add_argument("--seeds", type=seeds_of, default="42-51")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--variant-seeds", type=seeds_of, default="42-43")
    args = parser.parse_args()
    with args.nodes.open(newline="") as file:
        nodes = nodes_of(file, str(args.nodes))
    with args.pods.open(newline="") as file:
        pods = tasks_of(file, str(args.pods))
    print("| policy | allocated at 100 % load | at 130 % | decisions a second |\n|---|---|---|---|")
    for policy in POLICIES:
        at, per_s = figures(nodes, pods, policy, args.seeds)
        print(f"| {policy} | {at['100']:.2f} | {at['130']:.2f} | {per_s:,.0f} |", flush=True)
    first, other, again, copy = costs_ms(nodes, pods, 10_000)
    print("\n| 10,000 nodes, nine of ten GPUs in use, ms | |\n|---|---|")
    print(f"| first score of all nodes, with all that is derived from the mix | {first:.1f} |")
    print(
        f"| the same for another task | {other:.1f} |\n| again after a seat was taken | {again:.2f} |\n| a copy | {copy:.2f} |"
    )
    if not args.variants:
        return
    print(f"\n| % at 130 % load | {' | '.join(POLICIES)} |\n|---|{'---|' * len(POLICIES)}")
    for name in VARIANTS:
        listed = variant(name, pods, nodes)
        cells = [f"{figures(nodes, listed, policy, args.variant_seeds)[0]['130']:.2f}" for policy in POLICIES]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
