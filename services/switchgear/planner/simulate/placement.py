"""How full a fleet gets by a packing policy: the inflation experiment of FGD (Weng et al., USENIX ATC 2023).

The whole list of pods in random order, then pods drawn from it, until so many GPUs have been asked for. Nobody leaves; what fits nowhere is
dropped. The nodes are in random order, and of equal ones the first is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from switchgear.planner.baselines.placement import AnyNode, BestFit, Fgd
from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.mix import Arrivals, Mix
from switchgear.planner.model import WHOLE, Node, Seat, Task
from switchgear.planner.packing import Packer

#: Told of a task that has arrived: takes a seat for it. Whether there was one.
Place = Callable[[Task], bool]
#: Of a fleet, the mix of the list and a source of randomness. Ours looks at neither of these two.
Policy = Callable[[Fleet, Mix, np.random.Generator], Place]


@dataclass(frozen=True, slots=True)
class Run:
    """After each arrival: GPUs asked for and GPUs allocated so far, in percent of all. placed: whether it was. Shapes (arrivals,)."""

    load_pct: Reals
    allocated_pct: Reals
    placed: Mask

    def at(self, percent: int) -> float:
        """Allocated, as the mean over the arrivals whose load rounds to this; of few large ones, after the last below."""
        near = np.rint(self.load_pct) == percent
        if near.any():
            return float(self.allocated_pct[near].mean())
        below = np.flatnonzero(self.load_pct < percent)
        return float(self.allocated_pct[below[-1]]) if len(below) else 0.0


def inflate(nodes: Sequence[Node], pods: Sequence[Task], policy: str, seed: int, load: float) -> Run:
    """One run; the same seed gives the same arrivals for all policies. load: GPUs asked for, in those that there are.

    policy: one of `POLICIES`. At least one node must have a GPU and one pod ask for one.
    """
    random = np.random.default_rng(seed)
    capacity_milli = WHOLE * sum(node.gpus for node in nodes)
    size_milli = np.array([WHOLE * pod.gpus or pod.gpu_milli for pod in pods], np.int64)
    drawn = _arrivals(size_milli, load * capacity_milli, random)
    fleet = Fleet([nodes[row] for row in random.permutation(len(nodes))])
    place = POLICIES[policy](fleet, Mix.of((pod, float(count)) for pod, count in Counter(pods).items()), random)
    placed = np.array([place(pods[pod]) for pod in drawn], bool)
    asked_milli = size_milli[drawn]
    allocated_milli = np.cumsum(asked_milli * placed)
    return Run(100 * np.cumsum(asked_milli) / capacity_milli, 100 * allocated_milli / capacity_milli, placed)


def marks(load: float) -> tuple[int, ...]:
    """The loads that results are told at, in percent: 100 and the last."""
    last = round(100 * load)
    return (100, last) if last > 100 else (last,)


def means(runs: Iterable[Run], load: float) -> dict[str, float]:
    """Percent allocated at each of the marks, the mean of the runs."""
    all_runs = list(runs)
    return {str(mark): round(float(np.mean([run.at(mark) for run in all_runs])), 3) for mark in marks(load)}


class _Packs(Protocol):
    def best(self, task: Task) -> int: ...
    def seat(self, task: Task, row: int) -> Seat: ...
    def take(self, seat: Seat, task: Task) -> None: ...


def _placed(packer: _Packs, task: Task) -> bool:
    row = packer.best(task)
    if row < 0:
        return False
    packer.take(packer.seat(task, row), task)
    return True


def _ours(fleet: Fleet, _mix: Mix, _random: np.random.Generator) -> Place:
    """Learns the mix from what arrives."""
    arrivals, packer = Arrivals(), Packer(fleet, Mix())

    def place(task: Task) -> bool:
        nonlocal packer
        if renewed := arrivals.saw(task):
            packer = Packer(fleet, renewed)
        return _placed(packer, task)

    return place


def _by(packer: _Packs) -> Place:
    return lambda task: _placed(packer, task)


POLICIES: Mapping[str, Policy] = {
    "switchgear": _ours,
    "fgd": lambda fleet, mix, _random: _by(Packer(fleet, mix, Fgd(fleet, mix))),
    "best-fit": lambda fleet, mix, _random: _by(Packer(fleet, mix, BestFit(fleet))),
    "random": lambda fleet, _mix, random: _by(AnyNode(fleet, random)),
}


def _arrivals(size_milli: Ints, target_milli: float, random: np.random.Generator) -> list[int]:
    """Numbers of the pods that arrive, until so much has been asked for."""
    drawn = random.permutation(len(size_milli))
    while (missing := target_milli - int(size_milli[drawn].sum())) > 0:
        more = random.choice(len(size_milli), size=max(64, int(1.2 * missing / float(size_milli.mean()))))
        drawn = np.concatenate([drawn, more])
    last = int(np.searchsorted(np.cumsum(size_milli[drawn]), target_milli))
    found: list[int] = drawn[: last + 1].tolist()
    return found
