"""On which node one task goes, and on which of its GPUs: where least is lost of what the expected tasks could use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.mix import Mix
from switchgear.planner.model import Seat, Task
from switchgear.planner.worth import Worth

#: Tasks whose scores are kept, 10 bytes a node each. The one that was not asked for longest goes.
KEPT_MAX = 1024


class Rating(Protocol):
    """What a packing policy goes by. Rates of a node depend on this node and the task alone, or they could not be kept."""

    def rate(self, fleet: Fleet, task: Task, rows: Ints) -> tuple[Reals, Ints]:
        """For nodes where the task fits: rate, higher is better, and the GPU of a share or -1. Shapes (rows,)."""
        ...

    def bias(self, fleet: Fleet, task: Task) -> Reals | None:
        """Added to the rates of all nodes and not kept: for what changes with every seat. Shape (nodes,)."""
        ...


@dataclass(frozen=True, slots=True)
class _Scores:
    """seen: `Fleet.changes` when they were right."""

    score: Reals
    gpu: npt.NDArray[np.int16]
    seen: int


class Packer:
    """Scores the nodes of a fleet for one task at a time; `take` and `give` change the fleet.

    Equal tasks share the work: their scores are kept, and only nodes that have changed since are scored anew, which gives what scoring all nodes
    would. Seats that are taken in the fleet itself count too; whether nodes are open may only be changed before the first score.
    """

    def __init__(self, fleet: Fleet, mix: Mix, rating: Rating | None = None) -> None:
        """rating: `Worth` when None, worked out when it is needed first."""
        self.fleet = fleet
        self.mix = mix
        self._rating = rating
        self._kept: dict[Task, _Scores] = {}

    def copy(self) -> Self:
        """The same, to try something on. Costs a copy of the fleet: scores are shared until they differ."""
        other = type(self)(self.fleet.copy(), self.mix, self._rating)
        other._kept = dict(self._kept)
        return other

    def scores(self, task: Task) -> Reals:
        """Shape (nodes,), higher is better, -inf where it does not fit. For reading."""
        score = self._scores(task).score
        bias = self.rating.bias(self.fleet, task)
        return score if bias is None else score + bias

    def best(self, task: Task, allowed: Mask | None = None, bias: Reals | None = None) -> int:
        """The row of the best node, the first of equals; -1 when it fits nowhere. bias: added to the scores, shape (nodes,)."""
        scores = self.scores(task)
        if bias is not None:
            scores = scores + bias
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        row = int(scores.argmax()) if len(scores) else -1
        return row if row >= 0 and scores[row] > -np.inf else -1

    def seat(self, task: Task, row: int) -> Seat:
        """A seat on a node that has room."""
        if not task.gpu_milli:
            return self.fleet.seat(task, row)
        return self.fleet.seat(task, row, int(self._scores(task).gpu[row]))

    def take(self, seat: Seat, task: Task) -> None:
        """The seat's task has it from now on."""
        self.fleet.take(seat, task)

    def give(self, seat: Seat, task: Task) -> None:
        """The seat is free again."""
        self.fleet.give(seat, task)

    @property
    def rating(self) -> Rating:
        if self._rating is None:
            self._rating = Worth(self.fleet, self.mix)
        return self._rating

    def _scores(self, task: Task) -> _Scores:
        fleet, kept = self.fleet, self._kept.get(task)
        if kept is not None and kept.seen == fleet.changes:
            return kept
        if kept is None:
            rows = np.arange(len(fleet))
            score, gpu = np.full(len(fleet), -np.inf), np.full(len(fleet), -1, np.int16)
            if len(self._kept) == KEPT_MAX:
                del self._kept[next(iter(self._kept))]
        else:
            del self._kept[task]
            rows = np.flatnonzero(fleet.changed_at > kept.seen)
            score, gpu = kept.score.copy(), kept.gpu.copy()
            score[rows] = -np.inf
        rows = rows[fleet.fits(task, rows)]
        if len(rows):
            score[rows], gpu[rows] = self.rating.rate(fleet, task, rows)
        found = self._kept[task] = _Scores(score, gpu, fleet.changes)
        return found
