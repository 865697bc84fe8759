"""Which nodes a job may use: not those that are promised to others while it runs, nor the spares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.model import Job, Queue, Reservation, Running, Snapshot
from switchgear.planner.topology import Ladder


def open_to(fleet: Fleet, snapshot: Snapshot, job: Job, now_s: float, seconds: float) -> Mask:
    """Nodes that no reservation keeps from the job if it starts now and runs for `seconds` (inf: nobody knows for how long).

    A reservation is for the jobs and queues that it names, and for the queues below those; one that names none is maintenance, and for nobody.
    Whether nodes are closed is not looked at.
    """
    mask = np.ones(len(fleet), bool)
    for reservation in snapshot.reservations:
        if overlaps(reservation, now_s, seconds) and not is_for(reservation, job, snapshot.queues):
            mask[fleet.rows(reservation.nodes)] = False
    return mask


def overlaps(reservation: Reservation, now_s: float, seconds: float) -> bool:
    """Whether it is in force at any time from now on for `seconds`."""
    return now_s < reservation.end_s and (reservation.start_s <= now_s or reservation.start_s < now_s + seconds)


def is_for(reservation: Reservation, job: Job, queues: tuple[Queue, ...]) -> bool:
    """Whether the job may use what is reserved."""
    return job.name in reservation.jobs or (
        bool(reservation.queues) and any(queue in reservation.queues for queue in _lineage(job.queue, queues))
    )


def spared(fleet: Fleet, snapshot: Snapshot, now_s: float) -> Mask:
    """Nodes that are kept free for gangs that lose one: `policy.spares` of those that are empty, open, trusted and not reserved.

    So many of each GPU model as it has of the nodes. First in domains that gangs must not leave, where only a node of the same domain helps:
    by the GPUs of these gangs, shared between the spares of a domain. The others come from the domains with the least room. For jobs with seats that
    they keep; no others. On a fleet that is full there are none, and the first nodes that become free are spares. O(spares x nodes).
    """
    mask = np.zeros(len(fleet), bool)
    if not snapshot.policy.spares:
        return mask
    fit = fleet.open & (fleet.gpu_count > 0) & (fleet.whole_free == fleet.gpu_count) & (fleet.trust == 1.0)
    for reservation in snapshot.reservations:
        if overlaps(reservation, now_s, 0.0):
            fit[fleet.rows(reservation.nodes)] = False
    bound = _bound_gpus(fleet, snapshot.running)
    ladder = Ladder.of(fleet, frozenset(), one_model=True)
    for model, count in enumerate(_by_model(fleet, fit, snapshot.policy.spares)):
        of_model = fit & (fleet.model_of == model)
        for left in range(int(count), 0, -1):
            helped = np.where(of_model & ~mask, sum(_helped(*one, mask) for one in bound), 0.0)
            if not helped.any():
                room = np.where(of_model & ~mask, 1, 0)
                mask |= ladder.nearest(room, left, lambda rows, _: np.zeros(len(rows))) > 0
                break
            mask[helped.argmax()] = True
    return mask


def _bound_gpus(fleet: Fleet, running: Iterable[Running]) -> list[tuple[Ints, Reals]]:
    """For each way in which gangs that run are bound to domains: the domain of each node, and GPUs of such gangs by domain."""
    found: dict[frozenset[str], tuple[Ints, Reals]] = {}
    for one in running:
        required = frozenset(near.level for near in one.job.near if near.required and near.level in fleet.levels)
        rows = [fleet.at[seat.node] for seat in one.seats if seat.node in fleet.at] if required else []
        if len(rows) > 1:
            domain_of = Ladder.of(fleet, required, one_model=True).bound
            gpus = found.setdefault(required, (domain_of, np.zeros(len(fleet) + 1)))[1]
            # A node of unknown place, -1, counts for the last entry, which is nobody's.
            gpus[domain_of[rows[0]]] += one.job.gpus
    return list(found.values())


def _helped(domain_of: Ints, gpus: Reals, spares: Mask) -> Reals:
    """For each node the GPUs that one more spare there is for."""
    there = np.bincount(domain_of[spares & (domain_of >= 0)], minlength=len(gpus))
    shared: Reals = gpus / (1 + there)
    return np.where(domain_of < 0, 0.0, shared[domain_of])


def _by_model(fleet: Fleet, fit: Mask, spares: int) -> Ints:
    """Spares of each model, by its share of the nodes that have GPUs; no more than there are."""
    of = np.bincount(fleet.model_of[fleet.gpu_count > 0], minlength=len(fleet.models))
    most = np.bincount(fleet.model_of[fit], minlength=len(fleet.models))
    counts = np.zeros(len(fleet.models), np.int64)
    for _ in range(min(spares, int(most.sum()))):
        lacks = np.where(counts < most, of / max(of.sum(), 1) * spares - counts, -np.inf)
        counts[int(lacks.argmax())] += 1
    return counts


def _lineage(name: str, queues: tuple[Queue, ...]) -> Iterator[str]:
    """The queue and those above it; a parent that is its own ancestor ends it."""
    parents = {queue.name: queue.parent for queue in queues}
    for _ in range(len(queues) + 1):
        if not name:
            return
        yield name
        name = parents.get(name, "")
