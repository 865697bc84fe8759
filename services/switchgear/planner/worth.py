"""What the free part of a node is worth to the tasks that are to be expected: a task goes where least of it is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.mix import Mix
from switchgear.planner.model import WHOLE, Task
from switchgear.planner.shapes import Shapes
from switchgear.planner.usable import Usable

_Counts = npt.NDArray[np.float32]
#: Nodes that are rated at once: their tables stay in the processor's cache.
_ROWS_MAX = 512
#: Odd, so that no bit of what it multiplies is lost.
_MULTIPLIER = np.int64(0x5851F42D4C957F2D)


@dataclass(frozen=True, slots=True)
class Weights:
    """One set for every mix. Worth is in thousandths of a GPU.

    gap: weight of what partly free GPUs are worth to shares against the rest.
    relief: how much easier than alone a task fits, by how much more CPU (or memory) the fleet has a GPU than is asked for a GPU: its neighbours on
    the node may need less. 1 would be right if nodes were filled with tasks of one kind. relief_min, relief_max: its bounds.
    tie: losses are compared in steps of this size. Within one the earlier node is taken, so that the first fill up and the last stay whole for
    tasks of several GPUs; small fleets need that most.
    scarcity: of a GPU of a model that tasks bound to it will use up, against one that they will not.
    """

    gap: float = 12.0
    relief: float = 1.15
    relief_min: float = 0.8
    relief_max: float = 1.5
    tie: float = 10.0
    scarcity: float = 1000.0


class Worth:
    """Rates nodes for a task by what they lose. The worth of a node is the sum of three:

    - Fill: of each expected shape, how many the node could hold by its GPUs, CPU and memory, times its GPUs, averaged over the mix. CPU and
      memory count as amounts, so that GPUs without CPU are seen long before the CPU is gone.
    - `Usable`, which keeps in view whether one more fits at all.
    - Gaps: what its partly free GPUs are worth to shares (`prices`), so that shares end up beside those that fill the GPU.

    And all nodes of a GPU model that only some tasks may use are spared for those, the more the scarcer it gets (`bias`).
    """

    def __init__(self, fleet: Fleet, mix: Mix, weights: Weights | None = None) -> None:
        self._mix, self._weights = mix, weights or Weights()
        classes = mix.classes
        shapes = Shapes(classes, fleet.models)
        most = fleet.gpu_free.shape[1]
        self._of_shape = (shapes.weight * shapes.gpus * shapes.gpu_milli).astype(np.float32)
        wanted = max(float(classes.weight @ classes.total_gpu_milli) / WHOLE, 1e-9)
        hosts = fleet.gpu_count > 0

        def per_unit(has: Ints, asked: Ints, each: Reals) -> _Counts:
            per_gpu = float(has[hosts].sum(dtype=np.float64)) / max(int(fleet.gpu_count.sum()), 1)
            surplus = per_gpu / max(float(classes.weight @ asked) / wanted, 1e-9)
            relief = np.clip(self._weights.relief * surplus, self._weights.relief_min, self._weights.relief_max)
            found: _Counts = (relief / each).astype(np.float32)
            return found

        self._per_cpu_milli = per_unit(fleet.cpu_milli, classes.cpu_milli, shapes.cpu_milli)
        self._per_memory_mib = per_unit(fleet.memory_mib, classes.memory_mib, shapes.memory_mib)
        single = shapes.gpus == 1
        #: How many of each shape fit a GPU by thousandths free, shape (1001, shapes); and so many whole GPUs, shape (GPUs + 1, shapes).
        self._in_gpu = np.where(single, np.arange(WHOLE + 1)[:, None] // shapes.gpu_milli, 0).astype(np.float32)
        self._in_whole = np.where(single, 0, np.arange(most + 1)[:, None] // shapes.gpus).astype(np.float32)
        self._usable = Usable(classes, fleet.models, most)
        self._earlier = np.tril(np.ones((most, most), bool), -1)
        self._bound = _bound(fleet, mix)

    def rate(self, fleet: Fleet, task: Task, rows: Ints) -> tuple[Reals, Ints]:
        """For nodes where the task fits: minus what each loses, in steps; and for a share the GPU where that is least, else -1. Shapes (rows,)."""
        if len(rows) <= _ROWS_MAX:
            return self._rate(fleet, task, rows)
        first, like = _alike(fleet, rows)
        some = rows[first]
        parts = [self._rate(fleet, task, some[at : at + _ROWS_MAX]) for at in range(0, len(some), _ROWS_MAX)]
        return np.concatenate([part[0] for part in parts])[like], np.concatenate([part[1] for part in parts])[like]

    def bias(self, fleet: Fleet, task: Task) -> Reals | None:
        """To be added to the rates of all nodes, of now: it changes with every seat. Shape (nodes,)."""
        if self._bound is None or task.gpu_share == 0:
            return None
        free = np.where(fleet.open, fleet.gpu_free.sum(axis=1), 0)
        idle = np.bincount(fleet.model_of, free, minlength=len(fleet.models))
        # Of the idle GPUs of a model the part that tasks bound to it will have taken when all are taken.
        need = np.minimum(3.0, self._bound * idle.sum() / np.maximum(idle, 1.0))
        found: Reals = (need**3 * (-self._weights.scarcity * task.gpu_share))[fleet.model_of]
        return found

    def _rate(self, fleet: Fleet, task: Task, rows: Ints) -> tuple[Reals, Ints]:
        model, cpu, memory = fleet.model_of[rows], fleet.cpu_free[rows], fleet.memory_free[rows]
        # What is told of a node may contradict what runs there.
        gpus = np.minimum(np.maximum(fleet.gpu_free[rows], 0), WHOLE)
        full = gpus == WHOLE
        whole = np.count_nonzero(full, axis=1)
        room = self._in_gpu[gpus].sum(axis=1) + self._in_whole[whole]
        gaps = None if task.gpus else self._mix.gaps
        before = self._sum(model, cpu, memory, gpus, whole, room, gaps)
        cpu, memory = cpu - task.cpu_milli, memory - task.memory_mib
        if task.gpu_milli:
            # GPUs of a node with as much free are one choice.
            choice = (gpus >= task.gpu_milli) & ~((gpus[:, :, None] == gpus[:, None, :]) & self._earlier).any(axis=2)
            row, gpu = np.nonzero(choice)
            had = gpus[row, gpu]
            has = had - task.gpu_milli
            after = gpus[row]
            after[np.arange(len(row)), gpu] = has
            left = whole[row] - (had == WHOLE)
            room = room[row] + self._in_gpu[has] - self._in_gpu[had] + self._in_whole[left] - self._in_whole[whole[row]]
            worth = np.full(choice.shape, -np.inf)
            worth[row, gpu] = self._sum(model[row], cpu[row], memory[row], after, left, room, gaps)
            best = worth.argmax(axis=1)
            return self._stepped(worth[np.arange(len(rows)), best] - before), best
        if task.gpus:
            gpus = np.where(full & (full.cumsum(axis=1) <= task.gpus), 0, gpus)
            left = whole - task.gpus
            room = room - task.gpus * self._in_gpu[WHOLE] + self._in_whole[left] - self._in_whole[whole]
            whole = left
        change = self._sum(model, cpu, memory, gpus, whole, room, gaps) - before
        return self._stepped(change), np.full(len(rows), -1)

    def _sum(  # noqa: PLR0917 - columns of one table
        self, model: Ints, cpu: Ints, memory: Ints, gpus: Ints, whole: Ints, room: _Counts, gaps: Reals | None
    ) -> Reals:
        """room: of each shape, how many the GPUs would hold, shape (rows, shapes). gaps: left out where all nodes lose the same of them."""
        count = np.minimum(room, cpu.astype(np.float32)[:, None] * self._per_cpu_milli)
        np.minimum(count, memory.astype(np.float32)[:, None] * self._per_memory_mib, out=count)
        worth: Reals = np.einsum("rs,rs->r", count, self._of_shape[model]) + self._usable(model, cpu, gpus, whole)
        if gaps is not None:
            worth += self._weights.gap * gaps[gpus].sum(axis=1)
        return worth

    def _stepped(self, change: Reals) -> Reals:
        found: Reals = np.rint(change / self._weights.tie) * self._weights.tie
        return found


def _alike(fleet: Fleet, rows: Ints) -> tuple[Ints, Ints]:
    """Of nodes with the same model and the same free, one; and for each node the number of that one."""
    state = np.column_stack([fleet.model_of[rows], fleet.cpu_free[rows], fleet.memory_free[rows], fleet.gpu_free[rows]])
    # Sorting one number a node is ten times as fast as sorting nodes. It may overflow, and may be the same by chance.
    number = state @ (_MULTIPLIER ** np.arange(1, state.shape[1] + 1))
    _, first, like = np.unique(number, return_index=True, return_inverse=True)
    if not (state[first[like]] == state).all():
        return np.arange(len(rows)), np.arange(len(rows))
    return first, like


def _bound(fleet: Fleet, mix: Mix) -> Reals | None:
    """Of the GPUs that are asked for, the part that is bound to each model; who accepts several counts there by their size. None: nobody is."""
    classes = mix.classes
    accepts: Mask = np.array([[model in accepted for model in fleet.models] for accepted in classes.models], bool)
    if not accepts.any():
        return None
    split = accepts * np.bincount(fleet.model_of, fleet.gpu_count, minlength=len(fleet.models))
    split = split / np.maximum(split.sum(axis=1, keepdims=True), 1e-9)
    asked = classes.weight * classes.total_gpu_milli
    found: Reals = asked @ split / max(float(asked.sum()), 1e-9)
    return found
