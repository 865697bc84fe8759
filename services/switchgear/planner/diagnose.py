"""Why a gang finds no room: what it asks for is given up one by one, against the state as it is, until it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from switchgear.planner.fleet import Fleet, Mask, Reals
from switchgear.planner.gangs import Place, find, needs
from switchgear.planner.model import WHOLE, Cause, Job, NoRoom, Snapshot, Task
from switchgear.planner.reservations import is_for

#: Names in a sentence.
_NAMED_MAX = 3
_ASKED_FOR = {
    Cause.TOPOLOGY: "one domain",
    Cause.GPU_MODEL: "this GPU model",
    Cause.SELECTOR: "these labels, taints and nodes",
    Cause.CPU: "so many CPUs",
    Cause.MEMORY: "so much memory",
}


@dataclass(frozen=True, slots=True)
class _Try:
    """A search for a place. cause: what was given up for it."""

    cause: Cause
    job: Job
    fleet: Fleet
    open_to: Mask

    @property
    def fits(self) -> bool:
        return isinstance(find(self.fleet, self.job, self.open_to), Place)

    @property
    def count(self) -> int:
        """Tasks of the largest gang that fits, those with kept seats among them; of a single task the nodes that have room for it."""
        if self.job.tasks == 1:
            nodes = replace(self.job, tasks=len(self.fleet), tasks_min=1, one_a_node=True, near=(), speeds={}, kept=())
            place = find(self.fleet, nodes, self.open_to)
            return int((place.room > 0).sum()) if isinstance(place, Place) else 0
        kept = len(self.job.kept)
        place = find(self.fleet, replace(self.job, tasks_min=max(kept, 1)), self.open_to)
        return kept + place.size if isinstance(place, Place) else kept

    def text(self, when: str = "now") -> str:
        """`4 of its 16 tasks with 8 GPUs each fit now`."""
        job = self.job
        if job.tasks == 1:
            return f"no node has {needs(job.task)} for it {when}"
        least = f", and it needs {job.tasks_least}" if job.tasks_least < job.tasks else ""
        return f"{self.count} of its {job.tasks} tasks with {needs(job.task)} each fit {when}{least}"


class Diagnosis:
    """For one state of a fleet, which must not change meanwhile. Jobs that ask for the same have the same causes, worked out once.

    About ten searches for a place for each kind of job that waits: 1 ms on 1,000 nodes, 2 ms on 10,000.
    """

    def __init__(self, fleet: Fleet, snapshot: Snapshot, now_s: float) -> None:
        self._fleet = fleet
        self._snapshot = snapshot
        self._now_s = now_s
        self._found: dict[tuple[object, ...], tuple[NoRoom, ...]] = {}

    def cause(self, job: Job, open_to: Mask) -> NoRoom:
        """The first of `causes`."""
        return self.causes(job, open_to)[0]

    def causes(self, job: Job, open_to: Mask) -> tuple[NoRoom, ...]:
        """Why the job finds no room on the nodes that it may use, the binding cause first; at least one.

        IMPOSSIBLE stands alone: the fleet could not hold it even if it were empty, open and reserved for nobody. Otherwise first what alone
        stands in its way, in the order of `Cause`: without it the job would start now. Then what would stand in its way even if nothing ran.
        Then FRAGMENTED, when as many GPUs as it needs are free on nodes that it may use; then GPUS, or CPU or MEMORY when it needs no GPU.
        Of a job that fits: BEHIND. Quotas are not looked at, nor whether it is held.
        """
        key = (
            *(job.task, job.tasks, job.tasks_least, job.one_a_node, job.near, job.excluded, job.kept),
            *(tuple(sorted(job.speeds.items())), open_to.tobytes()),
        )
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = tuple(self._causes(job, open_to))
        return found

    @cached_property
    def _vacated(self) -> Fleet:
        return self._fleet.vacated()

    @cached_property
    def _vacated_open(self) -> Fleet:
        return _opened(self._vacated)

    @cached_property
    def _fleet_open(self) -> Fleet:
        return _opened(self._fleet)

    @cached_property
    def _taints(self) -> frozenset[str]:
        return frozenset[str]().union(*(node.taints for node in self._fleet.nodes))

    def _causes(self, job: Job, open_to: Mask) -> Iterator[NoRoom]:
        everywhere = np.ones(len(self._fleet), bool)
        here = _Try(Cause.GPUS, job, self._fleet, open_to)
        alone = _Try(Cause.IMPOSSIBLE, job, self._vacated_open, everywhere)
        if here.fits:
            yield NoRoom(Cause.BEHIND, "it would fit now, and others go before it")
            return
        if not alone.fits:
            yield NoRoom(Cause.IMPOSSIBLE, self._impossible(alone))
            return
        opened = replace(here, cause=Cause.NODES_CLOSED, fleet=self._fleet_open)
        unreserved = replace(here, cause=Cause.RESERVED, open_to=everywhere)
        binding = [one for one in (opened, unreserved, *self._without(here)) if one.fits]
        empty = replace(here, fleet=self._vacated)
        if not empty.fits:
            known = {one.cause for one in binding}
            idle = (replace(opened, fleet=alone.fleet), replace(unreserved, fleet=self._vacated))
            binding += [one for one in idle if one.cause not in known and one.fits]
        yield from (NoRoom(one.cause, self._text(here, one)) for one in binding)
        yield from self._scarce(here)

    def _without(self, here: _Try) -> Iterator[_Try]:
        """What the job asks of nodes, given up one at a time, in the order of `Cause`."""
        job, task = here.job, here.job.task
        if any(near.required for near in job.near):
            yield replace(here, cause=Cause.TOPOLOGY, job=replace(job, near=()))
        if task.gpu_share and len(here.fleet.models) > 1:
            alike = dict.fromkeys(here.fleet.models, 1.0)
            any_model = replace(job, task=replace(task, gpu_models=frozenset()), speeds=alike)
            yield replace(here, cause=Cause.GPU_MODEL, job=any_model)
        if task.selectors or job.excluded or self._taints - task.tolerates:
            anywhere = replace(task, selectors=(), tolerates=self._taints)
            yield replace(here, cause=Cause.SELECTOR, job=replace(job, task=anywhere, excluded=frozenset()))
        if task.cpu_milli:
            yield replace(here, cause=Cause.CPU, job=replace(job, task=replace(task, cpu_milli=0)))
        if task.memory_mib:
            yield replace(here, cause=Cause.MEMORY, job=replace(job, task=replace(task, memory_mib=0)))

    def _impossible(self, alone: _Try) -> str:
        text = alone.text("even when everything is free and open")
        because = next((one.cause for one in self._without(alone) if one.fits), None)
        return f"{text}; it would fit if it did not ask for {_ASKED_FOR[because]}" if because else text

    def _text(self, here: _Try, there: _Try) -> str:
        fits, would = here.text(), f"{there.count} would"
        match there.cause:
            case Cause.NODES_CLOSED:
                return f"{fits}; {would} if nodes were open that are not: {self._shut(here)}"
            case Cause.RESERVED:
                return f"{fits}; {would} with nodes that are {self._kept_for(here)}"
            case Cause.TOPOLOGY:
                levels = " and ".join(near.level for near in here.job.near if near.required)
                return f"{fits} in one {levels}; {would} in all"
            case Cause.GPU_MODEL:
                models = " or ".join(sorted(here.job.task.gpu_models)) or "one GPU model"
                return f"{fits} on {models}; {would} on all models together"
            case _:
                return f"{fits}; {would} if it did not ask for {_ASKED_FOR[there.cause]}"

    def _shut(self, here: _Try) -> str:
        fleet = self._fleet
        shut = ~fleet.open & here.open_to & fleet.meant(here.job.task)
        whys = Counter(fleet.nodes[row].closed for row in np.flatnonzero(shut))
        return _named([f"{count} {why}" for why, count in whys.most_common()])

    def _kept_for(self, here: _Try) -> str:
        fleet, snapshot = self._fleet, self._snapshot
        names = [
            reservation.name
            for reservation in snapshot.reservations
            if reservation.end_s > self._now_s
            and not is_for(reservation, here.job, snapshot.queues)
            and not here.open_to[fleet.rows(reservation.nodes)].all()
        ]
        return f"reserved: {_named(names)}" if names else "kept as spares"

    def _scarce(self, here: _Try) -> Iterator[NoRoom]:
        job, task = here.job, here.job.task
        usable = self._fleet.open & here.open_to & self._fleet.meant(task)
        usable[self._fleet.rows(job.excluded)] = False
        if not task.gpu_share:
            short = task.cpu_milli > 0 and bool((self._fleet.cpu_free[usable] < task.cpu_milli).any())
            yield NoRoom(Cause.CPU if short else Cause.MEMORY, f"{here.text()}; running jobs have the rest")
            return
        free, all_of_them = (np.where(usable, _capacity(fleet, task), 0.0) for fleet in (self._fleet, self._vacated))
        if job.tasks > 1 and not job.speeds:
            model_of = self._fleet.model_of
            by_model = [np.bincount(model_of, weights=amount) for amount in (all_of_them, free)]
            of_model = model_of == np.lexsort(by_model)[-1]
            free, all_of_them = free * of_model, all_of_them * of_model
        each, what = (1.0, f"{task.mig_profile} instances") if task.mig_profile else (task.gpu_share, "GPUs")
        text = f"{here.text()}; {free.sum():g} of the {all_of_them.sum():g} {what} that it may use are free"
        if free.sum() >= (job.tasks_least - len(job.kept)) * each:
            nodes = np.count_nonzero(free)
            where = f"on {nodes} node{'s' if nodes > 1 else ''}, at most {free.max():g} on one"
            yield NoRoom(Cause.FRAGMENTED, f"{text}, {where}")
        yield NoRoom(Cause.GPUS, text)


def _capacity(fleet: Fleet, task: Task) -> Reals:
    """GPUs free on each node, parts of them added up; of a MIG profile its instances."""
    if task.mig_profile:
        return fleet.mig_free.get(task.mig_profile, np.zeros(len(fleet))).astype(float)
    found: Reals = fleet.gpu_free.sum(axis=1) / WHOLE
    return found


def _opened(fleet: Fleet) -> Fleet:
    opened = fleet.copy()
    opened.open[:] = True
    return opened


def _named(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_MAX]) + (", and others" if len(names) > _NAMED_MAX else "")
