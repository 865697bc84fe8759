"""Which launchers are worth to be kept warm on each node: those of jobs that could come there, by their first start or after a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from switchgear.core.warm import WarmKind
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler.decide import Snapshot
from switchgear.scheduler.model import JobRecord, NodeState, Workload

#: A node of several hundred gigabytes keeps so many without noticing; how many it does keep is the agent's to say.
KINDS_PER_NODE_MAX = 2
#: Kinds beyond the newest ones would reach only nodes that could run none of these.
KINDS_MAX = 8


@dataclass(frozen=True, slots=True)
class _Candidate:
    kind: WarmKind
    gpus: int
    excluded: frozenset[str]


def warm_kinds(snapshot: Snapshot) -> Mapping[str, tuple[WarmKind, ...]]:
    """By node: kinds of the jobs that have not ended and that it could run; training first, since a whole gang waits for its slowest
    start, then those of the newest job.

    A program that is no Python file has nothing to import. O(nodes x KINDS_MAX).
    """
    nodes = {node.name: node for node in snapshot.nodes}
    candidates = [
        _Candidate(_kind(job), job.spec.nproc_per_node, job_life.excluded_now(job, nodes))
        for job in _newest_of_each_kind(snapshot.jobs)
    ]
    by_node = {}
    for node in snapshot.nodes:
        if node.state is NodeState.HEALTHY:
            gpus = len(node.inventory.gpus)
            fitting = (c.kind for c in candidates if c.gpus <= gpus and node.name not in c.excluded)
            by_node[node.name] = tuple(dict.fromkeys(fitting))[:KINDS_PER_NODE_MAX]
    return {name: kinds for name, kinds in by_node.items() if kinds}


def _newest_of_each_kind(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    newest: dict[tuple[WarmKind, int], JobRecord] = {}
    for job in sorted(jobs, key=lambda job: (job.spec.workload is not Workload.TRAINING, -job.create_revision)):
        if job.ended or job.spec.no_python:
            continue
        newest.setdefault((_kind(job), job.spec.nproc_per_node), job)
        if len(newest) == KINDS_MAX:
            break
    return list(newest.values())


def _kind(job: JobRecord) -> WarmKind:
    spec = job.spec
    return WarmKind.of(spec.python, spec.working_directory, spec.environment, spec.preload)
