"""What could be different in a snapshot: changes as values, written and read as short lines of text."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.planner.model import Job, Queue, Running, Seat, Snapshot, Task
from switchgear.planner.settings import set_of_queue, setting

#: Of one question, and nodes of one fleet with those that are added: a scheduler answers beside its own work.
CHANGES_MAX = 1000
NODES_MAX = 100_000

GRAMMAR = """changes, several in one line parted by `;`:
  set JOB KEY=VALUE ...     a job that waits or runs asks for something else
                            tasks=4  tasks-min=2  gpus=4  gpu-milli=500  mig-profile=1g.10gb  cpus=16  memory-gib=64
                            gpu-models=A100,H100 (any)  near=spine,leaf:preferred (none)  drop-labels=disk (all)
                            tolerates=preview  excluded=none  queue=queues/b (none)  priority=10  time-limit=2h (none)
                            hold=no  not-before=now  after=none  one-a-node=no  preemptible=yes  harvest=no
  submit JOB KEY=VALUE ...  a job that nobody has submitted, after all others
  end JOB ...               jobs that run or wait are gone
  move JOB to SEAT ...      a running job is elsewhere; a seat is NODE:GPU,GPU, in the order of its ranks
  open NODE ...             closed nodes may be used
  close NODE ...
  add N NODE                so many more nodes like this one, empty
  queue QUEUE KEY=VALUE     guaranteed=16  limit=64 (none)  weight=2
  lift RESERVATION ...      reservations are gone
  spares N                  so many nodes are kept free for recovery
"""


class Change(Protocol):
    """As text it is a line that `parse` reads."""

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the change. Raises NotFound when it names what is not there."""
        ...


@dataclass(frozen=True, slots=True)
class Set:
    """A job asks for something else. settings: pairs as in `GRAMMAR`."""

    job: str
    settings: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return _line("set", self.job, *(f"{key}={value}" for key, value in self.settings))

    def of(self, job: Job) -> Job:
        """The job with these settings."""
        for key, value in self.settings:
            job = setting(job, key, value)
        return job

    def apply(self, snapshot: Snapshot) -> Snapshot:
        _require([self.job], _jobs(snapshot))
        pending = tuple(self.of(job) if job.name == self.job else job for job in snapshot.pending)
        running = tuple(
            replace(one, job=self.of(one.job)) if one.job.name == self.job else one for one in snapshot.running
        )
        return replace(snapshot, pending=pending, running=running)


@dataclass(frozen=True, slots=True)
class Submit:
    """A job that is not there yet; it comes after all others of its kind."""

    job: str
    settings: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return _line("submit", self.job, *(f"{key}={value}" for key, value in self.settings))

    def apply(self, snapshot: Snapshot) -> Snapshot:
        if self.job in _jobs(snapshot):
            raise Invalid(f"{self.job} exists; give another name", Reason.BAD_FIELD, job=self.job)
        newest_s = max((job.submit_s for job in _jobs(snapshot).values()), default=0.0)
        job = Set(self.job, self.settings).of(Job(self.job, Task(), newest_s))
        return replace(snapshot, pending=(*snapshot.pending, job))


@dataclass(frozen=True, slots=True)
class End:
    """Jobs are gone."""

    jobs: tuple[str, ...]

    def __str__(self) -> str:
        return _line("end", *self.jobs)

    def apply(self, snapshot: Snapshot) -> Snapshot:
        _require(self.jobs, _jobs(snapshot))
        return replace(
            snapshot,
            pending=tuple(job for job in snapshot.pending if job.name not in self.jobs),
            running=tuple(one for one in snapshot.running if one.job.name not in self.jobs),
        )


@dataclass(frozen=True, slots=True)
class Move:
    """A running job has other seats, by rank."""

    job: str
    seats: tuple[Seat, ...]

    def __str__(self) -> str:
        return _line("move", self.job, "to", *(f"{seat.node}:{','.join(map(str, seat.gpus))}" for seat in self.seats))

    def apply(self, snapshot: Snapshot) -> Snapshot:
        _require([self.job], {one.job.name: one for one in snapshot.running})
        _require([seat.node for seat in self.seats], {node.name: node for node in snapshot.nodes})

        def moved(one: Running) -> Running:
            if one.job.name != self.job:
                return one
            if [len(seat.gpus) for seat in self.seats] != [len(seat.gpus) for seat in one.seats]:
                raise Invalid(
                    f"{self.job} has {len(one.seats)} seats; name one for each, with as many GPUs",
                    Reason.BAD_FIELD,
                    job=self.job,
                )
            return replace(one, seats=self.seats)

        return replace(snapshot, running=tuple(moved(one) for one in snapshot.running))


@dataclass(frozen=True, slots=True)
class Open:
    """Closed nodes may be used."""

    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return _line("open", *self.nodes)

    def apply(self, snapshot: Snapshot) -> Snapshot:
        return _closed(snapshot, self.nodes, "")


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing more is placed on these nodes; what runs there goes on."""

    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return _line("close", *self.nodes)

    def apply(self, snapshot: Snapshot) -> Snapshot:
        return _closed(snapshot, self.nodes, "closed in this simulation")


@dataclass(frozen=True, slots=True)
class Add:
    """More nodes like one that is there: empty, open, in the same domains."""

    count: int
    like: str

    def __str__(self) -> str:
        return _line("add", str(self.count), self.like)

    def apply(self, snapshot: Snapshot) -> Snapshot:
        known = {node.name: node for node in snapshot.nodes}
        _require([self.like], known)
        if len(known) + self.count > NODES_MAX:
            raise Invalid(f"there would be more than {NODES_MAX} nodes; add fewer", Reason.LIMIT_EXCEEDED)
        names = (name for at in range(len(known) + self.count) if (name := f"{self.like}-added-{at}") not in known)
        fresh = replace(known[self.like], closed="", incident=False, health=None, straggling=None)
        added = tuple(replace(fresh, name=name) for name, _ in zip(names, range(self.count), strict=False))
        return replace(snapshot, nodes=(*snapshot.nodes, *added))


@dataclass(frozen=True, slots=True)
class SetQueue:
    """A queue has another share."""

    queue: str
    settings: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return _line("queue", self.queue, *(f"{key}={value}" for key, value in self.settings))

    def apply(self, snapshot: Snapshot) -> Snapshot:
        _require([self.queue], {queue.name: queue for queue in snapshot.queues})

        def changed(queue: Queue) -> Queue:
            for key, value in self.settings:
                queue = set_of_queue(queue, key, value)
            return queue

        return replace(
            snapshot,
            queues=tuple(changed(queue) if queue.name == self.queue else queue for queue in snapshot.queues),
        )


@dataclass(frozen=True, slots=True)
class Lift:
    """Reservations are gone."""

    reservations: tuple[str, ...]

    def __str__(self) -> str:
        return _line("lift", *self.reservations)

    def apply(self, snapshot: Snapshot) -> Snapshot:
        _require(self.reservations, {one.name: one for one in snapshot.reservations})
        left = tuple(one for one in snapshot.reservations if one.name not in self.reservations)
        return replace(snapshot, reservations=left)


@dataclass(frozen=True, slots=True)
class Spares:
    """So many nodes are kept free for recovery."""

    count: int

    def __str__(self) -> str:
        return _line("spares", str(self.count))

    def apply(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, policy=replace(snapshot.policy, spares=self.count))


def parse(lines: Iterable[str]) -> tuple[Change, ...]:
    """The changes of all lines, in order (`GRAMMAR`). Raises Invalid."""
    found: list[Change] = []
    for line in lines:
        words: list[str] = []
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
            lexer.whitespace_split, lexer.commenters = True, ""
            for word in (*lexer, ";"):
                if set(word) != {";"}:
                    words.append(word)
                elif words:
                    found.append(_parsed(words))
                    words = []
        except ValueError as error:
            raise Invalid(f"{line!r}: {error}; close each quotation mark", Reason.BAD_FIELD) from error
        if len(found) > CHANGES_MAX:
            raise Invalid(f"at most {CHANGES_MAX} changes at once", Reason.LIMIT_EXCEEDED)
    return tuple(found)


def apply(snapshot: Snapshot, changes: Iterable[Change]) -> Snapshot:
    """The snapshot with the changes made one after the other. Raises NotFound and Invalid."""
    for change in changes:
        snapshot = change.apply(snapshot)
    return snapshot


def _parsed(words: Sequence[str]) -> Change:
    verb, subjects = words[0], tuple(words[1:])
    read = _VERBS.get(verb)
    if read is None:
        raise Invalid(f"{verb!r} is no change; write one of {', '.join(_VERBS)}", Reason.BAD_FIELD, verb=verb)
    if not subjects:
        raise Invalid(
            f"{verb!r} needs more words; see `switchgear simulate whatif --help`", Reason.BAD_FIELD, verb=verb
        )
    return read(subjects)


def _pairs(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if wrong := [word for word in words if "=" not in word]:
        raise Invalid(f"{wrong[0]!r} is no setting; write KEY=VALUE", Reason.BAD_FIELD)
    pairs = [word.partition("=") for word in words]
    return tuple((key, value) for key, _, value in pairs)


def _set(words: Sequence[str]) -> Set:
    found = Set(words[0], _pairs(words[1:]))
    found.of(Job(found.job, Task(), 0.0))  # what cannot be read is told before anything is done
    return found


def _submit(words: Sequence[str]) -> Submit:
    return Submit(words[0], _set(words).settings)


def _move(words: Sequence[str]) -> Move:
    if len(words) < 3 or words[1] != "to":
        raise Invalid("write `move JOB to NODE:GPU,GPU ...`, a seat for each rank", Reason.BAD_FIELD)
    seats: list[Seat] = []
    for word in words[2:]:
        node, _, gpus = word.rpartition(":")
        seats.append(Seat(node, tuple(_count(gpu) for gpu in gpus.split(",") if gpu)))
    return Move(words[0], tuple(seats))


def _add(words: Sequence[str]) -> Add:
    if len(words) != 2 or not (count := _count(words[0])):
        raise Invalid("write `add N NODE`", Reason.BAD_FIELD)
    return Add(count, words[1])


def _queue(words: Sequence[str]) -> SetQueue:
    found = SetQueue(words[0], _pairs(words[1:]))
    for key, value in found.settings:
        set_of_queue(Queue(found.queue), key, value)
    return found


_VERBS: Mapping[str, Callable[[tuple[str, ...]], Change]] = {
    "set": _set,
    "submit": _submit,
    "end": End,
    "move": _move,
    "open": Open,
    "close": Close,
    "add": _add,
    "queue": _queue,
    "lift": Lift,
    "spares": lambda words: Spares(_count(words[0])),
}


def _count(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and value == int(value)):
        raise Invalid(f"{text!r} is no number of things; write a whole number from 0 on", Reason.BAD_FIELD)
    return int(value)


def _line(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _jobs(snapshot: Snapshot) -> dict[str, Job]:
    return {job.name: job for job in (*(one.job for one in snapshot.running), *snapshot.pending)}


T = TypeVar("T")


def _require(names: Iterable[str], known: Mapping[str, T]) -> None:
    for name in names:
        if name not in known:
            raise NotFound(name)


def _closed(snapshot: Snapshot, names: tuple[str, ...], closed: str) -> Snapshot:
    _require(names, {node.name: node for node in snapshot.nodes})
    nodes = tuple(replace(node, closed=closed) if node.name in names else node for node in snapshot.nodes)
    return replace(snapshot, nodes=nodes)
