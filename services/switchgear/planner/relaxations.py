"""What a job could ask for instead: each kind of demand given up bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from switchgear.planner.changes import Set
from switchgear.planner.model import WHOLE, Cause, Job, Near
from switchgear.planner.reservations import is_for
from switchgear.planner.settings import near_in_words
from switchgear.planner.standing import Standing
from switchgear.planner.wording import duration, exact, named

Settings = tuple[tuple[str, str], ...]
#: Settings of the job, and what is different with them in words.
Way = tuple[Settings, str]
#: Ways of one kind that are offered, at most.
_WAYS_MAX = 4
#: Time limits that jobs usually have.
_USUAL_S = (4 * 3600.0, 3600.0, 900.0)
#: A limit of less is no offer.
_TIME_LIMIT_LEAST_S = 60.0
_GIB = 1024


@dataclass(frozen=True, slots=True)
class Kind:
    """ways: the smallest change first. helps_behind: may also help a job that fits and has others before it."""

    ways: Iterable[Way]
    helps_behind: bool = False


def relaxations(standing: Standing, job: Job, causes: set[Cause]) -> Iterator[Kind]:
    """All kinds that apply to the job, in the order of how little they ask of its owner. Lazy: each is worked out when it is iterated."""
    yield Kind(_sooner_over(standing, job), helps_behind=True)
    yield Kind(_less_near(standing, job))
    yield Kind(_smaller_pieces(job))
    yield Kind(_labels(standing, job))
    yield Kind(_models(standing, job))
    yield Kind(_cpus(standing, job))
    yield Kind(_memory(standing, job))
    if causes & {Cause.QUOTA, Cause.RESERVED}:
        yield Kind(_queues(standing, job), helps_behind=True)
    yield Kind(_fewer_tasks(standing, job), helps_behind=True)
    yield Kind(_less_gpu(standing, job))


def _sooner_over(standing: Standing, job: Job) -> Iterator[Way]:
    """Over before nodes are reserved, or wanted by those who wait."""
    snapshot, now_s = standing.snapshot, standing.now_s
    reserved = [one.start_s - now_s for one in snapshot.reservations if not is_for(one, job, snapshot.queues)]
    ahead = takewhile(lambda wait: wait.job != job.name, standing.decisions.waits)
    wanted = [wait.start_s - now_s for wait in ahead if wait.start_s is not None]
    # What is kept is kept from a time on that is known to the plan alone: the first of those expected, and usual limits, are tried.
    limits = {seconds // 60 * 60 for seconds in (*reserved, *sorted(wanted)[:1], *(_USUAL_S if wanted else ()))}
    limit_s = job.time_limit_s
    of_use = [s for s in limits if s >= _TIME_LIMIT_LEAST_S and (limit_s is None or s < limit_s)]
    for limit in sorted(of_use, reverse=True)[:_WAYS_MAX]:
        before = "no limit" if limit_s is None else duration(limit_s)
        yield (("time-limit", f"{limit:.0f}s"),), f"with a time limit of {duration(limit)} instead of {before}"


def _less_near(standing: Standing, job: Job) -> Iterator[Way]:
    required = [near for near in job.near if near.required]
    if not required or job.tasks == 1:
        return
    levels = standing.snapshot.levels
    for near in required:
        wider = levels[: levels.index(near.level)] if near.level in levels else ()
        for level in reversed(wider):
            instead = tuple(Near(level) if one is near else one for one in job.near)
            yield _near(instead), f"in one {level} instead of one {near.level}"
    preferred = tuple(replace(near, required=False) for near in job.near)
    yield _near(preferred), f"with one {named([near.level for near in required])} preferred, not required"


def _near(near: tuple[Near, ...]) -> Settings:
    return (("near", near_in_words(near)),)


def _smaller_pieces(job: Job) -> Iterator[Way]:
    """As many GPUs, on more nodes."""
    task = job.task
    if job.kept:
        return
    for gpus in range(task.gpus - 1, 0, -1):
        if task.gpus % gpus:
            continue
        parts = task.gpus // gpus
        settings = [("gpus", str(gpus)), ("tasks", str(job.tasks * parts))]
        if job.tasks_min:
            settings.append(("tasks-min", str(job.tasks_min * parts)))
        if task.cpu_milli:
            settings.append(("cpus", exact(-(-task.cpu_milli // parts) / 1000)))
        if task.memory_mib:
            settings.append(("memory-gib", exact(-(-task.memory_mib // parts) / _GIB)))
        yield tuple(settings), f"as {_tasks(job.tasks * parts, gpus)} instead of {_tasks(job.tasks, task.gpus)}"


def _tasks(tasks: int, gpus: int) -> str:
    return f"{tasks} task{'s' * (tasks > 1)} with {gpus} GPU{'s' * (gpus > 1)}" + " each" * (tasks > 1)


def _labels(standing: Standing, job: Job) -> Iterator[Way]:
    task = job.task
    keys = list(dict.fromkeys(one.key for one in task.selectors))
    taints = frozenset[str]().union(*(node.taints for node in standing.snapshot.nodes)) - task.tolerates
    single: list[Way] = [((("drop-labels", key),), f"without asking for the label {key}") for key in keys]
    single += [((("tolerates", taint),), f"if it tolerated the taint {taint}") for taint in sorted(taints)]
    if job.excluded:
        single.append(((("excluded", "none"),), "if it could use the nodes that it excludes"))
    yield from single
    if len(single) > 1:
        every: list[tuple[str, str]] = [("drop-labels", "all")] if keys else []
        if taints:
            every.append(("tolerates", ",".join(sorted(taints))))
        if job.excluded:
            every.append(("excluded", "none"))
        yield tuple(every), "whatever the labels and taints of nodes"


def _models(standing: Standing, job: Job) -> Iterator[Way]:
    asked = job.task.gpu_models
    if not asked:
        return
    for model in sorted(filter(None, set(standing.fleet.models) - asked)):
        yield (("gpu-models", ",".join(sorted(asked | {model}))),), f"on {model} as well"
    yield (("gpu-models", "any"),), "on any GPU model"


def _cpus(standing: Standing, job: Job) -> Iterator[Way]:
    def with_cpus(milli: int) -> Job:
        return replace(job, task=replace(job.task, cpu_milli=milli))

    most = _most(job.task.cpu_milli, lambda milli: standing.place(with_cpus(milli)) is not None)
    most -= most % (1000 if most >= 1000 else 100)
    if most:
        yield (
            (("cpus", exact(most / 1000)),),
            f"with {most / 1000:g} CPUs a task instead of {job.task.cpu_milli / 1000:g}",
        )


def _memory(standing: Standing, job: Job) -> Iterator[Way]:
    def with_memory(mib: int) -> Job:
        return replace(job, task=replace(job.task, memory_mib=mib))

    most = _most(job.task.memory_mib, lambda mib: standing.place(with_memory(mib)) is not None)
    most -= most % _GIB if most >= _GIB else 0
    if most:
        has = f"{job.task.memory_mib / _GIB:.4g} GiB"
        yield (("memory-gib", exact(most / _GIB)),), f"with {most / _GIB:.4g} GiB a task instead of {has}"


def _queues(standing: Standing, job: Job) -> Iterator[Way]:
    for queue in standing.snapshot.queues:
        if queue.name != job.queue:
            yield (("queue", queue.name),), f"in {queue.name} instead of {job.queue or 'no queue'}"


def _fewer_tasks(standing: Standing, job: Job) -> Iterator[Way]:
    least = max(len(job.kept), 1)
    place = standing.place(replace(job, tasks_min=least))
    if place is None or job.tasks_least <= least:
        return
    fit = place.size + len(job.kept)
    most = _most(job.tasks_least, lambda tasks: standing.admits(replace(job, tasks=tasks, tasks_min=0)) is None)
    tasks = min(fit, most, job.tasks_least - 1)
    for _ in range(_WAYS_MAX):
        if tasks < least:
            return
        instead = f"{job.tasks_least}" + " at least" * (job.tasks_least < job.tasks)
        yield (("tasks", str(tasks)),), f"with {tasks} task{'s' * (tasks > 1)} instead of {instead}"
        tasks //= 2


def _less_gpu(standing: Standing, job: Job) -> Iterator[Way]:
    """Fewer or smaller GPUs for each task; a whole one where GPUs are not divided."""
    task = job.task
    if task.mig_profile:
        slices = int(task.mig_profile.partition("g")[0])
        other = {profile: int(profile.partition("g")[0]) for profile in standing.fleet.mig_free}
        smaller = [profile for profile, size in other.items() if size < slices]
        for profile in sorted(smaller, key=lambda profile: (-other[profile], profile)):
            yield (("mig-profile", profile),), f"on a {profile} instance instead of {task.mig_profile}"
        yield (("gpus", "1"),), f"on a whole GPU instead of a {task.mig_profile} instance"
        return
    key = "gpus" if task.gpus else "gpu-milli"

    def fits(count: int) -> bool:
        return standing.startable(Set(job.name, ((key, str(count)),)).of(job)) if count else True

    most = _most(task.gpus or task.gpu_milli, fits)
    for count in _halves(most):
        share = count if task.gpus else count / WHOLE
        yield ((key, str(count)),), f"with {share:g} GPU{'s' * (share > 1)} a task instead of {task.gpu_share:g}"


def _halves(most: int) -> Iterator[int]:
    for _ in range(_WAYS_MAX):
        if most == 0:
            return
        yield most
        most //= 2


def _most(asked: int, enough: Callable[[int], bool]) -> int:
    """The most below what is asked for with which it goes; 0 when there is no such amount. enough: true up to some amount."""
    low, high = 0, max(asked, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
