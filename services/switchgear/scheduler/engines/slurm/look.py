"""One look at Slurm, sorted by what the engine asks of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from switchgear.core import names
from switchgear.scheduler.engines.slurm.keys import Key, key_of
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.slurm.model import JobState, NodeFlag, NodeState, SlurmJob, SlurmNode

#: Nodes in these states are not there at all: cloud nodes that are off, and such as are only configured.
_ABSENT = frozenset({NodeFlag.POWERED_DOWN, NodeFlag.POWERING_DOWN})


@dataclass(frozen=True, slots=True)
class Look:
    """What Slurm said at one moment.

    nodes: by resource name. ours: the Slurm jobs of each launcher, oldest first, also those that have ended lately.
    foreign: the jobs of others that hold nodes. queue: those that wait for some.
    """

    nodes: Mapping[str, SlurmNode] = field(default_factory=dict)
    ours: Mapping[Key, tuple[SlurmJob, ...]] = field(default_factory=dict)
    foreign: tuple[SlurmJob, ...] = ()
    queue: tuple[SlurmJob, ...] = ()


def look(nodes: Iterable[SlurmNode], jobs: Iterable[SlurmJob], settings: SlurmSettings) -> Look:
    """Anybody may write a comment like ours, so only jobs of the user that submits ours count."""
    ours = defaultdict[Key, list[SlurmJob]](list)
    foreign, queue = [], []
    for job in sorted(jobs, key=lambda job: job.id):
        key = key_of(job.comment, settings.cluster) if job.user == settings.user else None
        if key:
            ours[key].append(job)
        elif job.holds_nodes:
            foreign.append(job)
        elif job.state == JobState.PENDING:
            queue.append(job)
    seen = {
        resource_name(node.name): node
        for node in nodes
        if node.state != NodeState.FUTURE
        and (not settings.partitions or set(settings.partitions) & set(node.partitions))
    }
    return Look(seen, {key: tuple(found) for key, found in ours.items()}, tuple(foreign), tuple(queue))


def resource_name(node: str) -> str:
    """Of a NodeName, which may have letters that a resource name has not."""
    return names.node_name(names.to_id(node))


def is_gone(node: SlurmNode | None) -> bool:
    """Slurm has given the node up: its slurmd has been silent for SlurmdTimeout, it is switched off, or not configured any more."""
    if node is None or node.flags & _ABSENT:
        return True
    return node.state == NodeState.DOWN and NodeFlag.NOT_RESPONDING in node.flags
