"""Nodes that we share with others, as the planner is to see them: what jobs that are not ours hold, and where a job of ours may go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from switchgear.planner import model as p
from switchgear.scheduler.checks import bad
from switchgear.scheduler.model import ForeignJob, JobRecord, NodeStatus

#: Partitions in a sentence.
_NAMED_MAX = 20


def shared(snapshot: p.Snapshot, jobs: Mapping[str, JobRecord], status: Mapping[str, NodeStatus]) -> p.Snapshot:
    """The snapshot with the foreign jobs of its nodes as running ones that nobody preempts, until their time limit, and without the
    nodes outside of the partitions that a waiting job asks for. Where no engine knows either, it is the same object.
    """
    foreign = {name: one.foreign for name, one in status.items() if one.foreign}
    if foreign:
        snapshot = replace(snapshot, running=(*snapshot.running, *_held(snapshot, foreign)))
    bound = {job.name: job.spec.partition for job in jobs.values() if job.spec.partition}
    shut = {partition: outside(partition, status) for partition in set(bound.values())}
    if any(shut.values()):
        pending = tuple(
            replace(job, excluded=job.excluded | shut[bound[job.name]]) if job.name in bound else job
            for job in snapshot.pending
        )
        snapshot = replace(snapshot, pending=pending)
    return snapshot


def outside(partition: str, status: Mapping[str, NodeStatus]) -> frozenset[str]:
    """Nodes that are not for a job that asks for this partition, or one of several with commas between; none where no engine has any."""
    wanted = frozenset(partition.split(","))
    if not partition or not any(one.partitions for one in status.values()):
        return frozenset()
    return frozenset(name for name, one in status.items() if not one.partitions & wanted)


def require_partitions(partition: str, status: Mapping[str, NodeStatus]) -> None:
    """Raises Invalid when a job asks for a partition that no node is of, which its engine would refuse. Where no engine has any, nothing is known."""
    known = frozenset[str]().union(*(one.partitions for one in status.values()))
    missing = sorted(frozenset(partition.split(",")) - known)
    if partition and known and missing:
        there_are = ", ".join(sorted(known)[:_NAMED_MAX]) + (", …" if len(known) > _NAMED_MAX else "")
        raise bad("partition", f"names {missing[0]!r}, of which no node is; there are {there_are}")


def _held(snapshot: p.Snapshot, foreign: Mapping[str, tuple[ForeignJob, ...]]) -> Iterator[p.Running]:
    """Foreign jobs on GPUs that none of ours has: ours may be on other GPUs than we had planned, of the same number."""
    taken = defaultdict[str, set[int]](set)
    for one in snapshot.running:
        for seat in one.seats:
            taken[seat.node].update(seat.gpus)
    for node in snapshot.nodes:
        free = [gpu for gpu in reversed(range(node.gpus)) if gpu not in taken[node.name]]
        for job in foreign.get(node.name, ()):
            held, free = tuple(free[: job.gpus]), free[job.gpus :]
            start_s = job.start_unix_ns / 1e9
            limit_s = None if job.end_unix_ns is None else max(0.0, job.end_unix_ns / 1e9 - start_s)
            yield p.Running(
                # It counts in no quota of ours.
                p.Job(
                    f"{job.name}@{node.name.rpartition('/')[2]}",
                    p.Task(gpus=len(held)),
                    start_s,
                    user=job.user,
                    time_limit_s=limit_s,
                    preemptible=False,
                    harvest=True,
                ),
                (p.Seat(node.name, held),),
                start_s,
            )
