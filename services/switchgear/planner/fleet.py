"""What the nodes of a snapshot have left, as arrays: the state that a plan is worked out on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from switchgear.planner.model import WHOLE, Job, Node, Running, Seat, Selector, Task

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: Of a node that does not say what it has: more than anybody asks for.
ENOUGH = 1 << 50
#: What a node can be trusted with, in steps: a gang is as good as its worst node, and each step is a search of its own.
_TRUST_STEPS = np.array([0.1, 0.4, 0.7, 0.9])
_INCIDENT_TRUST = 0.25
#: Tasks of a node, at most; no node has so many GPUs, and what needs no GPU is bounded by it.
_ROOM_MAX = 1 << 20


class Fleet:
    """Rows are nodes, in the order given. All arrays are for reading; `take` and `give` change them.

    gpu_free: thousandths free of each GPU, shape (nodes, most GPUs of a node); 0 where there is none, and where one is divided by MIG.
    whole_free: GPUs of which nothing is taken. cpu_free, memory_free: ENOUGH where nobody says; cpu_milli, memory_mib: of an empty node.
    changes: seats taken and given so far; changed_at: which of them was the last on each node. domains: number of the topology domain
    by level, shape (levels, nodes), -1 where it is not known. trust: share of its speed that a gang can count on there, by health, straggling
    and incidents, in steps; 1 where nothing is known.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        levels: Sequence[str] = (),
        running: Iterable[Running] = (),
        pending: Iterable[Job] = (),
    ) -> None:
        """pending: those with seats that they keep, which nobody else can have."""
        self.nodes = tuple(nodes)
        self.levels = tuple(levels)
        self.at = {node.name: row for row, node in enumerate(self.nodes)}
        rows, most = len(self.nodes), max((node.gpus for node in self.nodes), default=0)
        self.gpu_free: Ints = np.zeros((rows, most), np.int64)
        self.mig_free: dict[str, Ints] = {}
        self._mig_of: dict[tuple[int, int, str], int] = {}
        for row, node in enumerate(self.nodes):
            self.gpu_free[row, : node.gpus] = WHOLE
            for gpu, profiles in node.mig.items():
                self.gpu_free[row, gpu] = 0
                for profile in profiles:
                    self.mig_free.setdefault(profile, np.zeros(rows, np.int64))[row] += 1
                    self._mig_of[row, gpu, profile] = self._mig_of.get((row, gpu, profile), 0) + 1
        self.gpu_count: Ints = np.array([node.gpus for node in self.nodes], np.int64)
        self.cpu_free: Ints = np.array([_or_enough(node.cpu_milli) for node in self.nodes], np.int64)
        self.memory_free: Ints = np.array([_or_enough(node.memory_mib) for node in self.nodes], np.int64)
        self.cpu_milli, self.memory_mib = self.cpu_free.copy(), self.memory_free.copy()
        self.open: Mask = np.array([not node.closed for node in self.nodes], bool)
        self.changes = 0
        self.changed_at: Ints = np.zeros(rows, np.int64)
        self.domains: Ints = np.array([self._domains(level) for level in range(len(self.levels))], np.int64).reshape(
            len(self.levels), rows
        )
        models = sorted({node.gpu_model for node in self.nodes})
        self.models = tuple(models)
        number = {model: at for at, model in enumerate(models)}
        self.model_of: Ints = np.array([number[node.gpu_model] for node in self.nodes], np.int64)
        self.whole_free: Ints = (self.gpu_free == WHOLE).sum(axis=1)
        self.trust = _trust(self.nodes)
        self.trust_steps: tuple[float, ...] = tuple(np.unique(self.trust).tolist())
        #: Domains as `topology.ladder` puts them together, by what a gang requires.
        self.ladders: dict[tuple[frozenset[str], bool], tuple[Ints, ...]] = {}
        self._rows: dict[frozenset[str], Ints] = {}
        self._meant: dict[tuple[frozenset[str], tuple[Selector, ...], frozenset[str]], Mask] = {}
        self._vacant = self.copy()
        self._fill((seat, one.job.task) for one in running for seat in one.seats)
        self._fill((seat, job.task) for job in pending for _, seat in job.kept)

    def __len__(self) -> int:
        return len(self.nodes)

    def copy(self) -> Fleet:
        """The same, to try something on. What never changes is shared."""
        other = object.__new__(Fleet)
        other.__dict__.update(self.__dict__)
        for name in ("gpu_free", "cpu_free", "memory_free", "whole_free", "open", "changed_at"):
            setattr(other, name, getattr(self, name).copy())
        other.mig_free = {profile: free.copy() for profile, free in self.mig_free.items()}
        other._mig_of = dict(self._mig_of)
        return other

    def vacated(self) -> Fleet:
        """The same with nothing on it."""
        other = self._vacant.copy()
        other._vacant = self._vacant
        return other

    def rows(self, names: frozenset[str]) -> Ints:
        """Rows of the nodes with these names, in order; names of others are passed over."""
        found = self._rows.get(names)
        if found is None:
            rows = sorted(self.at[name] for name in names if name in self.at)
            found = self._rows[names] = np.array(rows, np.int64)
        return found

    def meant(self, task: Task) -> Mask:
        """Nodes that the task may be on, whatever is free there and whether they are open: by GPU model, labels and taints."""
        key = task.gpu_models, task.selectors, task.tolerates
        found = self._meant.get(key)
        if found is None:
            found = self._meant[key] = np.array([_means(task, node) for node in self.nodes], bool)
        return found

    def room(self, task: Task) -> Ints:
        """How many such tasks each node can take now; 0 where it is closed or not meant."""
        room = np.full(len(self), _ROOM_MAX, np.int64)
        if task.gpus:
            room = self.whole_free // task.gpus
        elif task.gpu_milli:
            room = (self.gpu_free // task.gpu_milli).sum(axis=1)
        elif task.mig_profile:
            room = self.mig_free.get(task.mig_profile, np.zeros(len(self), np.int64)).copy()
        if task.cpu_milli:
            room = np.minimum(room, self.cpu_free // task.cpu_milli)
        if task.memory_mib:
            room = np.minimum(room, self.memory_free // task.memory_mib)
        room = np.where(self.open & self.meant(task), room, 0)
        found: Ints = np.maximum(room, 0)
        return found

    def fits(self, task: Task, rows: Ints) -> Mask:
        """Whether one such task has room on each of these nodes. Shape (rows,)."""
        fits: Mask = self.open[rows] & self.meant(task)[rows]
        if task.cpu_milli:
            fits &= self.cpu_free[rows] >= task.cpu_milli
        if task.memory_mib:
            fits &= self.memory_free[rows] >= task.memory_mib
        if task.gpus:
            fits &= self.whole_free[rows] >= task.gpus
        elif task.gpu_milli:
            fits &= (self.gpu_free[rows] >= task.gpu_milli).any(axis=1)
        elif task.mig_profile:
            free = self.mig_free.get(task.mig_profile)
            fits &= free is not None and free[rows] > 0
        return fits

    def seat(self, task: Task, row: int, gpu: int | None = None) -> Seat:
        """A seat on a node that has room: the GPUs with the lowest numbers; for a share the GPU with the least room that is enough, or `gpu`."""
        node, free = self.nodes[row].name, self.gpu_free[row]
        if task.gpus:
            return Seat(node, tuple(np.flatnonzero(free == WHOLE)[: task.gpus].tolist()))
        if task.gpu_milli:
            if gpu is None:
                gpu = int(np.where(free >= task.gpu_milli, free, 2 * WHOLE).argmin())
            return Seat(node, (gpu,))
        if task.mig_profile:
            return Seat(
                node,
                (
                    min(
                        at
                        for (of, at, profile), n in self._mig_of.items()
                        if of == row and profile == task.mig_profile and n
                    ),
                ),
            )
        return Seat(node)

    def take(self, seat: Seat, task: Task) -> None:
        """The seat's task has it from now on. Seats of nodes that are gone hold nothing."""
        self._change(seat, task, -1)

    def _fill(self, held: Iterable[tuple[Seat, Task]]) -> None:
        """As `take` for each, at once."""
        rows, cpu_milli, memory_mib = list[int](), list[int](), list[int]()
        gpu_rows, gpus, milli = list[int](), list[int](), list[int]()
        for seat, task in held:
            row = self.at.get(seat.node)
            if row is None:
                continue
            if task.mig_profile:
                self.take(seat, task)
                continue
            rows.append(row)
            cpu_milli.append(task.cpu_milli)
            memory_mib.append(task.memory_mib)
            gpu_rows += [row] * len(seat.gpus)
            gpus += seat.gpus
            milli += [WHOLE if task.gpus else task.gpu_milli] * len(seat.gpus)
        if not rows:
            return
        np.subtract.at(self.gpu_free, (gpu_rows, gpus), milli)
        np.subtract.at(self.cpu_free, rows, cpu_milli)
        np.subtract.at(self.memory_free, rows, memory_mib)
        self.whole_free[rows] = np.count_nonzero(self.gpu_free[rows] == WHOLE, axis=1)
        self.changes += len(rows)
        self.changed_at[rows] = self.changes

    def give(self, seat: Seat, task: Task) -> None:
        """The seat is free again."""
        self._change(seat, task, 1)

    def _change(self, seat: Seat, task: Task, sign: int) -> None:
        row = self.at.get(seat.node)
        if row is None:
            return
        self.changes += 1
        self.changed_at[row] = self.changes
        if task.mig_profile:
            self.mig_free.setdefault(task.mig_profile, np.zeros(len(self), np.int64))[row] += sign
            for gpu in seat.gpus:
                self._mig_of[row, gpu, task.mig_profile] = self._mig_of.get((row, gpu, task.mig_profile), 0) + sign
        elif seat.gpus:
            self.gpu_free[row, list(seat.gpus)] += sign * (WHOLE if task.gpus else task.gpu_milli)
            self.whole_free[row] = np.count_nonzero(self.gpu_free[row] == WHOLE)
        self.cpu_free[row] += sign * task.cpu_milli
        self.memory_free[row] += sign * task.memory_mib

    def _domains(self, level: int) -> list[int]:
        numbers: dict[str, int] = {}
        names = [node.topology[level] if level < len(node.topology) else "" for node in self.nodes]
        return [numbers.setdefault(name, len(numbers)) if name else -1 for name in names]


def _or_enough(amount: int | None) -> int:
    return ENOUGH if amount is None else amount


def _trust(nodes: Iterable[Node]) -> Reals:
    trust = np.array(
        [
            (1.0 if node.health is None else node.health)
            * (1.0 - (node.straggling or 0.0))
            * (_INCIDENT_TRUST if node.incident else 1.0)
            for node in nodes
        ]
    )
    step = np.searchsorted(_TRUST_STEPS, trust + 1e-9, side="right") - 1
    found: Reals = np.where(step == len(_TRUST_STEPS) - 1, 1.0, _TRUST_STEPS[np.maximum(step, 0)])
    return found


def _means(task: Task, node: Node) -> bool:
    return (
        (not task.gpu_models or node.gpu_model in task.gpu_models)
        and node.taints <= task.tolerates
        and all((node.labels.get(one.key, "") in one.values) is not one.excludes for one in task.selectors)
    )
