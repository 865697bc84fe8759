"""Who may use how many GPUs: queues as a tree, and what each of them has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import Cause, Job, NoRoom, Preempt, Queue, Snapshot

#: GPUs. Shares are sums of thousandths and sevenths, so that two ways to add them differ by less.
ROUNDING_GPUS = 1e-6


class Tree:
    """Queues, numbered from 1; 0 is the root above them all, which is guaranteed nothing and has no limit.

    chain: shape (queues, depth of the deepest + 1), the queues from the root down to each, -1 below it.
    guaranteed: GPUs; at least what the queues below are guaranteed together, else theirs would not hold.
    Raises Invalid when a name is "" or given twice, a parent is missing or below its child, or a figure makes no sense.
    """

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.at = {"": 0}
        for number, queue in enumerate(queues, 1):
            _check(queue, self.at)
            self.at[queue.name] = number
        self.parent = [-1, *(self._parent(queue) for queue in queues)]
        paths = [self._path(number) for number in range(len(self.parent))]
        self.depth: Ints = np.array([len(path) - 1 for path in paths], np.int64)
        self.chain: Ints = np.full((len(paths), max(map(len, paths))), -1, np.int64)
        for number, path in enumerate(paths):
            self.chain[number, : len(path)] = path
        self.names = ("", *(queue.name for queue in queues))
        self.limit: Reals = np.array([np.inf, *(np.inf if one.limit is None else one.limit for one in queues)])
        #: Whether a queue has a limit, or one above it.
        self.limited = [bool(np.isfinite(self.limit[path]).any()) for path in paths]
        self.weight: Reals = np.array([1.0, *(queue.weight for queue in queues)])
        self.lends = np.array([True, *(queue.lends for queue in queues)], bool)
        self.deepest_first = sorted(range(1, len(paths)), key=lambda number: -self.depth[number])
        self.guaranteed: Reals = np.array([0.0, *(queue.guaranteed for queue in queues)])
        below = np.zeros(len(paths))
        for number in self.deepest_first:
            self.guaranteed[number] = max(self.guaranteed[number], below[number])
            below[self.parent[number]] += self.guaranteed[number]

    def __len__(self) -> int:
        return len(self.names)

    def of(self, job: Job) -> int:
        """The job's queue; the root for one that is not listed."""
        return self.at.get(job.queue, 0)

    def path(self, queue: int) -> Ints:
        """From the root down to it."""
        found: Ints = self.chain[queue, : self.depth[queue] + 1]
        return found

    def parting(self, queue: int) -> Ints:
        """Depth of the last queue that each has in common with this one. Shape (queues,)."""
        found: Ints = ((self.chain == self.chain[queue]) & (self.chain >= 0)).sum(axis=1) - 1
        return found

    def _parent(self, queue: Queue) -> int:
        if queue.parent not in self.at:
            raise Invalid(
                f"queue {queue.name} is below {queue.parent}, which does not exist: create it, or name another parent",
                Reason.BAD_FIELD,
                queue=queue.name,
            )
        return self.at[queue.parent]

    def _path(self, number: int) -> list[int]:
        path = [number]
        while path[0] > 0:
            path.insert(0, self.parent[path[0]])
            if len(path) > len(self.at):
                name = list(self.at)[number]
                raise Invalid(
                    f"queue {name} is below itself, or below two that are: name another parent for it or them",
                    Reason.BAD_FIELD,
                    queue=name,
                )
        return path


class Ledger:
    """What each queue has, of running jobs and of those to which others' GPUs are promised; those others have nothing any more.

    A harvest job counts in no quota. capacity: GPUs of open nodes, and what runs on the closed ones.
    leaving: who leaves, and for whom; "" where that is not known.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.tree = Tree(snapshot.queues)
        self.used: Reals = np.zeros(len(self.tree))
        self.leaving: dict[str, str] = {}
        self._charges: dict[str, tuple[Job, float]] = {}
        self._harvested = 0.0
        self._keepers = [number for number in self.tree.deepest_first if not self.tree.lends[number]]
        closed = {node.name for node in snapshot.nodes if node.closed}
        self.capacity = float(sum(node.gpus for node in snapshot.nodes if not node.closed))
        of_queue = np.zeros(len(self.tree))
        for running in sorted(snapshot.running, key=lambda one: (one.start_s, one.job.name)):
            job, gpus = running.job, len(running.seats) * running.job.task.gpu_share
            if closed:
                self.capacity += running.job.task.gpu_share * sum(seat.node in closed for seat in running.seats)
            if running.leaving:
                self.leaving[job.name] = running.leaving_for
                continue
            self._charges[job.name] = job, gpus
            if job.harvest:
                self._harvested += gpus
            else:
                of_queue[self.tree.of(job)] += gpus
        for queue in range(len(self.tree)):
            self.used[self.tree.path(queue)] += of_queue[queue]
        promised = set(self.leaving.values())
        for job in snapshot.pending:
            if job.name in promised:
                self.charge(job, job.tasks_least * job.task.gpu_share)
            elif job.kept:
                self.charge(job, len(job.kept) * job.task.gpu_share)

    def copy(self) -> Ledger:
        """The same, to try something on."""
        other = object.__new__(Ledger)
        other.__dict__.update(self.__dict__)
        other.used, other.leaving, other._charges = self.used.copy(), dict(self.leaving), dict(self._charges)
        return other

    def admits(self, job: Job, gpus: float) -> NoRoom | None:
        """None when quotas let the job have so many GPUs in all, what it has already among them.

        No queue goes above its limit, and nobody has what is set aside for a queue that does not lend. What is guaranteed to a queue that lends
        is its own when it comes, by `victims`, whoever uses it until then. One that is refused here may still be let in when others leave.
        """
        over = self.excess(job, gpus)
        if over is None:
            return None
        queue, by = over
        asks = f"this job asks for {gpus:g}"
        if queue == 0:
            kept = self._kept(self.used)
            busy = self.used[0] + (self._harvested if job.harvest else 0.0)
            free = max(self.capacity - busy, 0.0)
            return NoRoom(
                Cause.QUOTA, f"{free:g} GPUs are free, of which {kept:g} are kept by queues that do not lend; {asks}"
            )
        name, has, limit = self.tree.names[queue], self.used[queue] - self.charged(job), self.tree.limit[queue]
        if gpus > limit:
            return NoRoom(Cause.QUOTA, f"queue {name} may have {limit:g} GPUs at most; {asks}")
        return NoRoom(
            Cause.QUOTA, f"queue {name} has {has:g} of the {limit:g} GPUs that it may have; {asks}, {by:g} too many"
        )

    def excess(self, job: Job, gpus: float) -> tuple[int, float] | None:
        """The widest queue below which others would have to give up GPUs before this job may have so many, and how many; None: none would."""
        if not self._keepers and (job.harvest or not self.tree.limited[self.tree.of(job)]):
            return None
        more = gpus - self.charged(job)
        used = self.used.copy()
        if not job.harvest:
            path = self.tree.path(self.tree.of(job))
            used[path] += more
            over = used[path] - self.tree.limit[path]
            if over.max() > ROUNDING_GPUS:
                at = int(np.argmax(over > ROUNDING_GPUS))
                return int(path[at]), float(over[at])
        if self._keepers:
            # A harvesting job gives way to all others, but not to what is kept for them.
            harvested = self._harvested if job.harvest else 0.0
            before = self.used[0] + self._kept(self.used) + harvested
            after = used[0] + self._kept(used) + harvested + (more if job.harvest else 0.0)
            if after - max(before, self.capacity) > ROUNDING_GPUS:
                return 0, float(after - self.capacity)
        return None

    def charge(self, job: Job, gpus: float) -> None:
        """The job has so many GPUs from now on, whatever it had."""
        more = gpus - self.charged(job)
        if job.harvest:
            self._harvested += more
        else:
            self.used[self.tree.path(self.tree.of(job))] += more
        self._charges[job.name] = job, gpus

    def release(self, job: Job, gpus: float) -> None:
        """The job has so many GPUs fewer; one that has none left is forgotten."""
        self.charge(job, max(self.charged(job) - gpus, 0.0))
        if self._charges[job.name][1] <= ROUNDING_GPUS:
            del self._charges[job.name]

    def promise(self, job: Job, gpus: float, preemptions: Iterable[Preempt]) -> None:
        """The GPUs of those that leave are the job's: they are no longer charged, and it is, so that nobody is stopped twice for one claim."""
        for preempt in preemptions:
            self.leaving[preempt.job] = job.name
            if preempt.job in self._charges:
                victim, had = self._charges[preempt.job]
                self.release(victim, had)
        self.charge(job, gpus)

    def charged(self, job: Job) -> float:
        """GPUs that the job has."""
        return self._charges[job.name][1] if job.name in self._charges else 0.0

    def borrowed(self, queue: str) -> float:
        """GPUs that the queue and those below it have beyond what it is guaranteed."""
        number = self.tree.at.get(queue, 0)
        return max(float(self.used[number] - self.tree.guaranteed[number]), 0.0)

    @property
    def charges(self) -> Mapping[str, tuple[Job, float]]:
        """Job and GPUs by name, those that have had them for longest first."""
        return self._charges

    def _kept(self, used: Reals) -> float:
        """GPUs that queues keep from all others: what is guaranteed to those that do not lend, above what they and those below use and keep."""
        kept = np.zeros(len(self.tree))
        for number in self._keepers:
            more = self.tree.guaranteed[number] - used[number] - kept[number]
            if more > 0:
                kept[self.tree.path(number)] += more
        return float(kept[0])


def _check(queue: Queue, seen: Mapping[str, int]) -> None:
    wrong = ""
    if queue.name in seen:
        wrong = "its name is taken: give it another" if queue.name else "it has no name: give it one"
    elif queue.guaranteed < 0 or (queue.limit is not None and queue.limit < queue.guaranteed):
        wrong = f"it is guaranteed {queue.guaranteed:g} GPUs of at most {queue.limit}: make 0 <= guaranteed <= limit"
    elif queue.weight <= 0:
        wrong = f"its weight is {queue.weight:g}: make it more than 0"
    if wrong:
        raise Invalid(f"queue {queue.name!r}: {wrong}", Reason.BAD_FIELD, queue=queue.name)
