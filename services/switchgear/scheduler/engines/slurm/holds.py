"""Nodes that look free and that Slurm keeps from us: it has given them to others, or lets others go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from switchgear.scheduler.engines.slurm.fate import Fate, Kind, is_behind, what_for
from switchgear.scheduler.engines.slurm.keys import Key
from switchgear.scheduler.engines.slurm.look import Look, resource_name
from switchgear.slurm.model import SlurmJob

#: A node that was kept from us is tried again after this, whatever is seen: each try may cost others of the job a minute.
HOLD_S = 300.0


@dataclass(frozen=True, slots=True)
class Hold:
    """why: in Slurm's words. since_s: Unix time. others: the foreign jobs that had the node then, or waited for it."""

    why: str
    since_s: float
    others: frozenset[int]


def holds(before: Mapping[str, Hold], seen: Look, fates: Mapping[Key, Fate], now_s: float) -> dict[str, Hold]:
    """The nodes that Slurm keeps from us now, by name. before: what this answered after the look before.

    Nothing else shows it: a foreign job may have taken a node's memory and none of its GPUs, or wait for the node with a higher priority.
    A hold ends once nobody of the others waits for the node and one of those that it was for is gone.
    """
    lasting = {name: hold for name, hold in before.items() if _lasts(hold, name, seen, now_s)}
    new = {
        key.node: Hold(one.why, now_s, _holders(seen, key.node) | _rivals(seen, key.node))
        for key, one in fates.items()
        if one.kind is Kind.WITHHELD
    }
    return lasting | new


def in_line(fates: Mapping[Key, Fate], seen: Look) -> dict[Key, Fate]:
    """The fates, of which a job that holds nothing keeps its place in Slurm's queue as long as others queue for the same node.

    It would lose that place by going back, and might never come to the front again; it costs nobody anything to wait there.
    """
    holding = {key.job for key, one in fates.items() if one.job and one.job.holds_nodes}

    def settled(key: Key, one: Fate) -> Fate:
        if one.kind is not Kind.WITHHELD or one.job is None or key.job in holding:
            return one
        if not is_behind(one.job) or not _rivals(seen, key.node):
            return one
        return Fate(Kind.ALIVE, what_for(one.job), one.job, one.doubles)

    return {key: settled(key, one) for key, one in fates.items()}


def _lasts(hold: Hold, name: str, seen: Look, now_s: float) -> bool:
    if name not in seen.nodes or now_s - hold.since_s >= HOLD_S:
        return False
    return bool(_rivals(seen, name)) or hold.others <= _holders(seen, name)


def _holders(seen: Look, name: str) -> frozenset[int]:
    return frozenset(job.id for job in seen.foreign if name in map(resource_name, job.nodes))


def _rivals(seen: Look, name: str) -> frozenset[int]:
    """Foreign jobs that wait for their turn and may get the node, as far as we may see them."""
    return frozenset(job.id for job in seen.queue if is_behind(job) and _may_have(job, name, seen))


def _may_have(job: SlurmJob, name: str, seen: Look) -> bool:
    node = seen.nodes.get(name)
    if node is None or not node.is_up or node.is_drained:
        return False
    if not set(job.partition.split(",")) & set(node.partitions) or node.name in job.excluded_nodes:
        return False
    return not job.required_nodes or node.name in job.required_nodes
