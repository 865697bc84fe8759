"""What the scheduler is told of Slurm's nodes and of its launchers on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from switchgear.scheduler.engines.slurm.fate import Fate, Kind
from switchgear.scheduler.engines.slurm.holds import Hold
from switchgear.scheduler.engines.slurm.keys import Key, is_our_drain
from switchgear.scheduler.engines.slurm.look import Look, is_gone, resource_name
from switchgear.scheduler.model import (
    Closure,
    ForeignJob,
    GpuRecord,
    Inventory,
    LauncherRef,
    Lost,
    NodeStatus,
    Observation,
)
from switchgear.slurm.model import JobState, NodeFlag, NodeState, SlurmJob, SlurmNode

#: Of a node that Slurm keeps for others: nothing of ours would start there.
_KEPT = {
    NodeFlag.PLANNED: "planned by Slurm for another job",
    NodeFlag.RESERVED: "in a reservation of Slurm",
    NodeFlag.MAINTENANCE: "in maintenance by a reservation of Slurm",
    NodeFlag.REBOOT_REQUESTED: "to be rebooted by Slurm",
}


def observation(
    seen: Look,
    fates: Mapping[Key, Fate],
    agents: Mapping[str, NodeStatus],
    cluster: str,
    *,
    away: str,
    opened: Collection[str] = (),
    held: Mapping[str, Hold] | None = None,
) -> Observation:
    """fates: of the launchers that should run. agents: what the agents of nodes say, by name; there need not be any.
    away: since when Slurm has not answered, empty while it does: then nobody is judged by what it said before.
    held: nodes that Slurm keeps from us, by name."""
    told: defaultdict[str, list[tuple[LauncherRef, Fate]]] = defaultdict(list)
    for key, one in fates.items():
        told[key.node].append((LauncherRef(key.job, key.epoch), one))
    running = _running(seen)
    foreign = _foreign(seen)
    statuses = []
    for name, node in sorted(seen.nodes.items()):
        agent = agents.get(name)
        answers = NodeFlag.NOT_RESPONDING not in node.flags and node.state != NodeState.DOWN
        status = NodeStatus(
            _inventory(node, agent),
            # An agent that has just gone tells sooner than Slurm does; one that is gone for good tells nothing.
            connected=answers and (agent is None or agent.connected or agent.silent),
            silent=is_gone(node) and not away,
            launchers=frozenset(LauncherRef(key.job, key.epoch) for key in running.get(name, {})),
            closed=_closure(node, cluster),
            opened=name in opened,
            obstacle=away or _obstacle(node, (held or {}).get(name), ours=bool(running.get(name))),
            foreign=_with_hidden(node, foreign.get(name, []), running.get(name, {})),
            partitions=frozenset(node.partitions),
        )
        statuses.append((name, _told(status, told.get(name, ()))))
    return Observation(tuple(statuses), complete=True)


def _told(status: NodeStatus, fates: Iterable[tuple[LauncherRef, Fate]]) -> NodeStatus:
    fates = list(fates)
    if not fates:
        return status
    return replace(
        status,
        unstartable=tuple((ref, one.why) for ref, one in fates if one.kind is Kind.UNSTARTABLE),
        waiting=tuple((ref, one.why) for ref, one in fates if one.kind is Kind.ALIVE and one.why),
        withheld=tuple((ref, one.why) for ref, one in fates if one.kind is Kind.WITHHELD),
        lost=tuple(Lost(ref, one.why, one.by_node) for ref, one in fates if one.kind is Kind.LOST),
        cancelled=tuple((ref, one.why) for ref, one in fates if one.kind is Kind.CANCELLED),
    )


def _running(seen: Look) -> dict[str, dict[Key, SlurmJob]]:
    """Launchers that hold something of a node, by its name."""
    found: defaultdict[str, dict[Key, SlurmJob]] = defaultdict(dict)
    for key, jobs in seen.ours.items():
        for job in jobs:
            if job.holds_nodes:
                found[key.node][key] = job
    return found


def _inventory(node: SlurmNode, agent: NodeStatus | None) -> Inventory:
    """What Slurm counts; what its agent knows beyond that, as long as both see as many GPUs."""
    said = Inventory(
        node.address or node.hostname,
        _gpus(tuple(sorted(node.gpus.by_type.items()))),
        agent_version="",
        cpu_milli=node.cpus * 1000,
        memory_mib=node.memory_mib,
        labels=tuple((f"slurm/{feature}", "yes") for feature in sorted(set(node.features))),
    )
    if agent is None:
        return said
    own = agent.inventory
    return replace(
        said,
        gpus=own.gpus if len(own.gpus) == len(said.gpus) else said.gpus,
        agent_version=own.agent_version,
        metrics_address=own.metrics_address,
        labels=tuple(sorted({**dict(said.labels), **dict(own.labels)}.items())),
    )


@lru_cache(maxsize=256)
def _gpus(by_type: tuple[tuple[str, int], ...]) -> tuple[GpuRecord, ...]:
    """A cluster has a few kinds of nodes."""
    kinds = [kind for kind, count in by_type for _ in range(count)]
    return tuple(GpuRecord(index, model=kind) for index, kind in enumerate(kinds))


def _closure(node: SlurmNode, cluster: str) -> Closure | None:
    """Of a node that others keep out of service; a drain of ours is none."""
    if is_our_drain(node.reason, cluster):
        return None
    by = node.reason_user or "somebody"
    if node.is_drained:
        return Closure(f"drained in Slurm by {by}: {node.reason or 'no reason given'}", f"slurm:{by}")
    # One that does not answer is unreachable; one that does was taken out by somebody, or by Slurm itself.
    if node.state == NodeState.DOWN and NodeFlag.NOT_RESPONDING not in node.flags:
        return Closure(f"down in Slurm by {by}: {node.reason or 'no reason given'}", f"slurm:{by}")
    return None


def _obstacle(node: SlurmNode, held: Hold | None, *, ours: bool) -> str:
    for flag, why in _KEPT.items():
        if flag in node.flags:
            return why
    if not node.is_up and not node.is_drained:
        return "not answering Slurm" if NodeFlag.NOT_RESPONDING in node.flags else f"{node.state.lower()} in Slurm"
    if node.state == NodeState.ALLOCATED and not ours:
        return "without a free CPU in Slurm"
    return f"withheld: {held.why}" if held else ""


def _foreign(seen: Look) -> dict[str, list[ForeignJob]]:
    found: defaultdict[str, list[ForeignJob]] = defaultdict(list)
    for job in seen.foreign:
        for node in job.nodes:
            gpus = job.gpus.get(node, job.gpus_per_node).count
            if gpus:
                start_ns = (job.start_s or 0) * 10**9
                end_ns = None if job.end_s is None or job.state == JobState.SUSPENDED else job.end_s * 10**9
                one = ForeignJob(f"slurm/{job.id}", f"slurm:{job.user}", gpus, start_ns, end_ns)
                found[resource_name(node)].append(one)
    return found


def _with_hidden(node: SlurmNode, foreign: list[ForeignJob], ours: Mapping[Key, SlurmJob]) -> tuple[ForeignJob, ...]:
    """With what is in use beyond the jobs that we may see (PrivateData of slurm.conf)."""
    own = sum(job.gpus.get(node.name, job.gpus_per_node).count for job in ours.values())
    hidden = node.gpus_used.count - own - sum(job.gpus for job in foreign)
    if hidden > 0:
        foreign = [*foreign, ForeignJob("slurm/hidden", "slurm:somebody", hidden, 0)]
    return tuple(foreign)
