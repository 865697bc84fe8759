"""Where a gang goes: a seat for each of its tasks, or none for any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.model import Cause, Job, NoRoom, Seat, Task
from switchgear.planner.packing import Packer
from switchgear.planner.topology import Ladder

#: A gang runs as fast as its slowest GPU. So much of the faster ones may be left unused where models are mixed.
_IDLE_MAX = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gang fits. size: tasks that it gets beside those that it keeps. room: tasks that each node may get; any choice of
    `size` of them within one domain of the ladder's bound is a gang. worth: its speed, in tasks of speed 1.
    """

    size: int
    room: Ints
    ladder: Ladder
    worth: float


def seats_for(packer: Packer, job: Job, open_to: Mask, bias: Reals | None = None) -> tuple[Seat, ...] | NoRoom:
    """A seat for each rank, or why there is none. The packer is left as it was; who starts the job takes the seats, but for those kept.

    As many tasks as fit, at least `tasks_least`. Of all that is possible the gang is the fastest: tasks x measured speed of the GPU model x
    what its nodes can be trusted with; models are mixed only where their measured speeds are within a tenth. Then it is as near together as
    it gets (`Ladder.nearest`): within one domain of each required level, in the fewest domains of the others; whole nodes come from the
    domains with the least room, parts of nodes are the packer's choice. Tasks that share GPUs or need none, and those of a gang that is not
    `contiguous`, are near each other only if it says so. Ranks follow the neighbourhood, and ranks that keep their seats keep
    their numbers unless a smaller gang moves them up. open_to: nodes that it may use; the text of a refusal is short, `diagnose` knows more.
    bias: added to the packer's scores for a task that goes with others on one node, shape (nodes,).
    """
    if job.tasks == 1 and not job.kept and not _wants_whole_node(packer.fleet, job.task):
        return _one(packer, job, open_to, bias)
    place = find(packer.fleet, job, open_to)
    if isinstance(place, NoRoom):
        return place
    kept = dict(job.kept)
    fresh = iter(_fresh(packer, job, place))
    seats = (kept.get(rank) or next(fresh, None) for rank in range(job.tasks))
    return tuple(seat for seat in seats if seat)


def find(fleet: Fleet, job: Job, open_to: Mask) -> Place | NoRoom:
    """Whether and with how many tasks the gang fits now, without choosing seats. O(nodes) for each kind of node that differs in speed or trust."""
    required = frozenset() if job.tasks == 1 else frozenset(near.level for near in job.near if near.required)
    if unknown := sorted(required - set(fleet.levels)):
        return NoRoom(Cause.TOPOLOGY, f"no node says in which {unknown[0]} it is")
    wanted, least = job.tasks - len(job.kept), max(job.tasks_least - len(job.kept), 0)
    room = _room(fleet, job, open_to)
    best: Place | None = None
    most = 0
    for worth, among, one_model in _choices(fleet, job):
        if best is not None and best.worth >= wanted * worth:
            break
        ladder = Ladder.of(fleet, required, one_model)
        here = np.where(among & (ladder.bound >= 0), room, 0)
        here = _beside_kept(fleet, job, ladder, here, wanted)
        rows = np.flatnonzero(here)
        size = int(np.bincount(ladder.bound[rows], weights=here[rows]).max()) if len(rows) else 0
        most = max(most, size)
        size = min(size, wanted)
        if size >= least and (best is None or size * worth > best.worth):
            best = Place(size, here, ladder, size * worth)
    return best or _refusal(job, int(room.sum()), most)


def needs(task: Task) -> str:
    """`8 GPUs`, `0.5 GPU`, `1 GPU, 16 CPUs and 64 GiB`: in words."""
    parts = []
    if task.mig_profile:
        parts.append(f"a {task.mig_profile} instance")
    elif task.gpus or task.gpu_milli:
        parts.append(f"{task.gpu_share:g} GPU" + ("s" if task.gpu_share > 1 else ""))
    if task.cpu_milli:
        parts.append(f"{task.cpu_milli / 1000:g} CPU" + ("s" if task.cpu_milli > 1000 else ""))
    if task.memory_mib:
        parts.append(f"{task.memory_mib / 1024:.4g} GiB")
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "nothing"


def _wants_whole_node(fleet: Fleet, task: Task) -> bool:
    return bool(fleet.levels) and task.gpus > 0 and task.gpus == fleet.gpu_free.shape[1]


def _one(packer: Packer, job: Job, open_to: Mask, bias: Reals | None) -> tuple[Seat, ...] | NoRoom:
    allowed = open_to
    if job.excluded:
        allowed = open_to.copy()
        allowed[packer.fleet.rows(job.excluded)] = False
    for _, among, _ in _choices(packer.fleet, job):
        row = packer.best(job.task, allowed & among, bias)
        if row >= 0:
            return (packer.seat(job.task, row),)
    return _refusal(job, 0, 0)


def _room(fleet: Fleet, job: Job, open_to: Mask) -> Ints:
    room = np.where(open_to, fleet.room(job.task), 0)
    if job.excluded:
        room[fleet.rows(job.excluded)] = 0
    if job.one_a_node:
        room = np.minimum(room, 1)
        room[_kept_rows(fleet, job)] = 0
    return room


def _kept_rows(fleet: Fleet, job: Job) -> list[int]:
    return [fleet.at[seat.node] for _, seat in job.kept if seat.node in fleet.at]


def _choices(fleet: Fleet, job: Job) -> Iterator[tuple[float, Mask, bool]]:
    """(worth of one task, nodes, whether all tasks have to be on one GPU model), the worthiest first."""
    one_model = job.tasks > 1 and job.task.gpu_share > 0 and len(fleet.models) > 1
    speeds: list[tuple[float, Mask | None, bool]] = [(1.0, None, one_model)]
    if job.speeds and job.task.gpu_share > 0:
        speed_of = np.array([job.speeds.get(model, 1.0) for model in fleet.models])
        speeds = [(float(speed), (speed_of == speed)[fleet.model_of], one_model) for speed in np.unique(speed_of)]
        if one_model:
            speeds += list(_mixtures(fleet, job, speed_of))
    choices = [(speed * step, step, nodes, one) for speed, nodes, one in speeds for step in fleet.trust_steps]
    # Of equals the purest first, and among those the most trusted.
    choices.sort(key=lambda choice: (-choice[0], not choice[3], -choice[1]))
    for worth, step, nodes, one in choices:
        trusted = fleet.trust >= step
        yield worth, trusted if nodes is None else trusted & nodes, one


def _mixtures(fleet: Fleet, job: Job, speed_of: Reals) -> Iterator[tuple[float, Mask | None, bool]]:
    """Models of which the slowest leaves little of the fastest unused; only measured ones."""
    measured = np.array([model in job.speeds for model in fleet.models])
    for speed in np.unique(speed_of[measured]):
        models = measured & (speed_of >= speed) & (speed_of * (1 - _IDLE_MAX) <= speed)
        if models.sum() > 1:
            yield float(speed), models[fleet.model_of], False


def _beside_kept(fleet: Fleet, job: Job, ladder: Ladder, room: Ints, wanted: int) -> Ints:
    """The room within what holds the seats that are kept: the whole gang must be together, and is as near to them as it gets."""
    kept = [row for row in _kept_rows(fleet, job) if ladder.bound[row] >= 0]
    if not kept:
        return room
    room = np.where(ladder.bound == np.bincount(ladder.bound[kept]).argmax(), room, 0)
    for rung in reversed(ladder.rungs[ladder.top + 1 :]):
        beside = np.where(rung == np.bincount(rung[kept]).argmax(), room, 0)
        if beside.sum() >= wanted:
            return beside
    return room


def _fresh(packer: Packer, job: Job, place: Place) -> Iterator[Seat]:
    """Seats for `place.size` tasks, neighbours one after the other."""
    fleet, task = packer.fleet, job.task
    if not job.near and not (job.contiguous and task.gpus):
        yield from _one_by_one(packer, job, place)
        return

    def rating(rows: Ints, tasks: int) -> Reals:
        if task.gpus and (fleet.gpu_count[rows] <= task.gpus * tasks).all():
            return fleet.trust[rows]
        # Shares are rated by the first of them: a packer has no name for several.
        scores = packer.scores(_several(task, tasks) if task.gpus else task)[rows]
        spread = float(np.ptp(scores))
        # Within a step of trust: the steps are wider apart than this.
        return fleet.trust[rows] + (0.1 * (scores - scores.min()) / spread if spread else 0.0)

    tasks = place.ladder.nearest(place.room, place.size, rating)
    for row in place.ladder.by_neighbourhood(np.flatnonzero(tasks)):
        yield from _on_node(packer, task, int(row), int(tasks[row]))


def _several(task: Task, tasks: int) -> Task:
    """One task that needs what so many do."""
    return replace(task, gpus=task.gpus * tasks, cpu_milli=task.cpu_milli * tasks, memory_mib=task.memory_mib * tasks)


def _on_node(packer: Packer, task: Task, row: int, tasks: int) -> list[Seat]:
    if task.gpus:
        gpus = packer.fleet.seat(Task(gpus=task.gpus * tasks), row).gpus
        node = packer.fleet.nodes[row].name
        return [Seat(node, gpus[at : at + task.gpus]) for at in range(0, len(gpus), task.gpus)]
    seats: list[Seat] = []
    for _ in range(tasks):
        seats.append(packer.seat(task, row))
        packer.take(seats[-1], task)
    for seat in seats:
        packer.give(seat, task)
    return seats


def _one_by_one(packer: Packer, job: Job, place: Place) -> list[Seat]:
    """Tasks that need not be near each other: each where the packer wants it, after those before it."""
    bound = place.ladder.bound
    in_domain = np.bincount(bound, weights=place.room)
    fits = np.flatnonzero(in_domain >= place.size)
    allowed = (place.room > 0) & (bound == fits[in_domain[fits].argmin()])
    seats: list[Seat] = []
    for _ in range(place.size):
        row = packer.best(job.task, allowed)
        seats.append(packer.seat(job.task, row))
        packer.take(seats[-1], job.task)
        if job.one_a_node:
            allowed[row] = False
    for seat in seats:
        packer.give(seat, job.task)
    return sorted(seats, key=lambda seat: packer.fleet.at[seat.node])


def _refusal(job: Job, room: int, most: int) -> NoRoom:
    """By what was counted on the way."""
    if job.tasks == 1:
        return NoRoom(Cause.GPUS, f"no node has {needs(job.task)} free for it")
    least = job.tasks_least - len(job.kept)
    of = f"{least} tasks with {needs(job.task)} each"
    if room >= least:
        together, cause = (
            ("in one domain", Cause.TOPOLOGY)
            if any(near.required for near in job.near)
            else ("on one GPU model", Cause.GPU_MODEL)
        )
        return NoRoom(cause, f"{of} fit, and at most {most} of them {together}")
    return NoRoom(Cause.GPUS, f"{room} of {of} fit now")
