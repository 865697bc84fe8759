"""The scheduler's tables, and how its values go in and out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.scheduler.model import (
    Dependency,
    ExcludedNode,
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    Leaving,
    Lent,
    NodeRecord,
    NodeState,
    PlacedNode,
    PlacementRecord,
    Turn,
    Workload,
)
from switchgear.scheduler.tables import JobRow, NodeRow
from switchgear.scheduler.wishes import wishes_from_stored

#: Whose revisions its records take.
SERVICE = "scheduler"
#: Counts the writes of what `rules_store` keeps.
RULES = "scheduler/rules"
#: Counts the nodes that were deleted, which leave no row with a revision.
DELETIONS = "scheduler/deletions"


async def get_node(session: AsyncSession, name: str) -> NodeRecord | None:
    row = await session.get(NodeRow, name)
    return None if row is None else _node(row)


async def nodes_after_name(session: AsyncSession, after: str, limit: int | None = None) -> list[NodeRecord]:
    """Nodes in name order."""
    return await _nodes(session, select(NodeRow).where(NodeRow.name > after).order_by(NodeRow.name).limit(limit))


async def nodes_after_revision(session: AsyncSession, after: int, limit: int) -> list[NodeRecord]:
    """Nodes in the order of their newest write."""
    return await _nodes(
        session, select(NodeRow).where(NodeRow.revision > after).order_by(NodeRow.revision).limit(limit)
    )


async def node_names(session: AsyncSession) -> set[str]:
    return set(await session.scalars(select(NodeRow.name)))


async def save_node(session: AsyncSession, node: NodeRecord) -> None:
    await session.merge(NodeRow(**_node_values(node)))
    await session.flush()


async def update_nodes(session: AsyncSession, nodes: Sequence[NodeRecord]) -> None:
    """Writes nodes that are stored already, in one statement."""
    if nodes:
        await session.execute(update(NodeRow), [_node_values(node) for node in nodes])


def _node_values(node: NodeRecord) -> dict[str, Any]:
    return {
        "name": node.name,
        "address": node.inventory.address,
        "gpus": [asdict(gpu) for gpu in node.inventory.gpus],
        "agent_version": node.inventory.agent_version,
        "metrics_address": node.inventory.metrics_address,
        "last_seen_unix_ns": node.last_seen_unix_ns,
        "reachable": node.reachable,
        "standing": node.standing.value,
        "reason": node.reason,
        "actor": node.actor,
        "revision": node.revision,
        "healthy_revision": node.healthy_revision,
        "traits": {
            "cpu_milli": node.inventory.cpu_milli,
            "memory_mib": node.inventory.memory_mib,
            "told_labels": dict(node.inventory.labels),
            "labels": dict(node.labels),
            "taints": sorted(node.taints),
        },
    }


async def delete_node(session: AsyncSession, name: str) -> None:
    await session.execute(delete(NodeRow).where(NodeRow.name == name))


async def save_last_seen(session: AsyncSession, last_seen_unix_ns: Mapping[str, int]) -> None:
    """When nodes were last heard. Not a change that a watcher is told of, so their revisions stay."""
    for name, time_unix_ns in last_seen_unix_ns.items():
        await session.execute(update(NodeRow).where(NodeRow.name == name).values(last_seen_unix_ns=time_unix_ns))


async def get_job(session: AsyncSession, name: str) -> JobRecord | None:
    row = await session.get(JobRow, name)
    return None if row is None else _job(row)


async def jobs_before(session: AsyncSession, create_revision: int | None, limit: int) -> list[JobRecord]:
    """Jobs created before that one, newest first; all when None."""
    query = select(JobRow).order_by(JobRow.create_revision.desc()).limit(limit)
    return await _jobs(
        session, query if create_revision is None else query.where(JobRow.create_revision < create_revision)
    )


async def jobs_after_revision(session: AsyncSession, after: int, limit: int) -> list[JobRecord]:
    """Jobs in the order of their newest write."""
    return await _jobs(session, select(JobRow).where(JobRow.revision > after).order_by(JobRow.revision).limit(limit))


async def jobs_ended_after(session: AsyncSession, time_unix_ns: int) -> list[JobRecord]:
    """Jobs that ended after that time, and all that have not ended."""
    alive = or_(JobRow.end_time_unix_ns.is_(None), JobRow.end_time_unix_ns > time_unix_ns)
    return await _jobs(session, select(JobRow).where(alive).order_by(JobRow.create_revision))


async def gpus_allocated(session: AsyncSession) -> dict[str, int]:
    """GPUs in placements of jobs that have not ended, by node."""
    counts: dict[str, int] = {}
    for placed in await session.scalars(select(JobRow.placed_nodes).where(JobRow.end_time_unix_ns.is_(None))):
        for node in placed:
            counts[node["node"]] = counts.get(node["node"], 0) + len(node["gpu_indices"])
    return counts


async def count_jobs_alive(session: AsyncSession) -> int:
    query = select(func.count()).select_from(JobRow).where(JobRow.end_time_unix_ns.is_(None))
    return await session.scalar(query) or 0


async def save_job(session: AsyncSession, job: JobRecord) -> None:
    await session.merge(JobRow(**_job_values(job)))
    await session.flush()


async def update_jobs(session: AsyncSession, jobs: Sequence[JobRecord]) -> None:
    """Writes jobs that are stored already, in one statement."""
    if jobs:
        await session.execute(update(JobRow), [_job_values(job) for job in jobs])


def _job_values(job: JobRecord) -> dict[str, Any]:
    return {
        "name": job.name,
        "spec": asdict(job.spec),
        "state": job.state.value,
        "message": job.message,
        "placement_epoch": job.placement.epoch,
        "placed_nodes": [asdict(node) for node in job.placement.nodes],
        "excluded_nodes": [asdict(node) for node in job.excluded],
        "create_revision": job.create_revision,
        "create_time_unix_ns": job.create_time_unix_ns,
        "end_time_unix_ns": job.end_time_unix_ns,
        "revision": job.revision,
        "trace_parent": job.trace_parent,
        "turn": asdict(job.turn),
    }


async def forget_ended_jobs(session: AsyncSession, keep: int) -> None:
    """Deletes all but the `keep` jobs that ended last."""
    ended = select(JobRow.end_time_unix_ns).where(JobRow.end_time_unix_ns.is_not(None))
    oldest_kept = await session.scalar(ended.order_by(JobRow.end_time_unix_ns.desc()).offset(keep).limit(1))
    if oldest_kept is not None:
        await session.execute(delete(JobRow).where(JobRow.end_time_unix_ns <= oldest_kept))


async def _nodes(session: AsyncSession, query: Select[NodeRow]) -> list[NodeRecord]:
    return [_node(row) for row in await session.scalars(query)]


async def _jobs(session: AsyncSession, query: Select[JobRow]) -> list[JobRecord]:
    return [_job(row) for row in await session.scalars(query)]


def _node(row: NodeRow) -> NodeRecord:
    traits = row.traits
    return NodeRecord(
        name=row.name,
        inventory=Inventory(
            row.address,
            tuple(_gpu(gpu) for gpu in row.gpus),
            row.agent_version,
            row.metrics_address,
            # Absent in what earlier versions wrote, as all of the traits.
            traits.get("cpu_milli"),
            traits.get("memory_mib"),
            tuple(sorted(traits.get("told_labels", {}).items())),
        ),
        last_seen_unix_ns=row.last_seen_unix_ns,
        reachable=row.reachable,
        standing=NodeState(row.standing),
        reason=row.reason,
        actor=row.actor,
        revision=row.revision,
        healthy_revision=row.healthy_revision,
        labels=tuple(sorted(traits.get("labels", {}).items())),
        taints=frozenset(traits.get("taints", ())),
    )


def _gpu(stored: Mapping[str, Any]) -> GpuRecord:
    return GpuRecord(**{**stored, "mig_profiles": tuple(stored.get("mig_profiles", ()))})


def _turn(stored: Mapping[str, Any]) -> Turn:
    if not stored:
        return Turn()
    leaving = stored["leaving"]
    return Turn(
        **{
            **stored,
            "waits_for": tuple(Dependency(**one) for one in stored["waits_for"]),
            "leaving": Leaving(**leaving) if leaving else None,
            # Absent in what earlier versions wrote.
            "lent": Lent(**lent) if (lent := stored.get("lent")) else None,
        }
    )


def _job(row: JobRow) -> JobRecord:
    return JobRecord(
        name=row.name,
        spec=_spec(row.spec),
        create_time_unix_ns=row.create_time_unix_ns,
        state=JobState(row.state),
        message=row.message,
        placement=PlacementRecord(
            row.placement_epoch,
            tuple(PlacedNode(**{**seat, "gpu_indices": tuple(seat["gpu_indices"])}) for seat in row.placed_nodes),
        ),
        excluded=tuple(ExcludedNode(**entry) for entry in row.excluded_nodes),
        end_time_unix_ns=row.end_time_unix_ns,
        create_revision=row.create_revision,
        revision=row.revision,
        trace_parent=row.trace_parent,
        turn=_turn(row.turn),
    )


def _spec(stored: Mapping[str, Any]) -> JobSpec:
    environment: Sequence[Sequence[str]] = stored["environment"]
    return JobSpec(
        **{
            **stored,
            "argv": tuple(stored["argv"]),
            "environment": tuple((key, value) for key, value in environment),
            # Absent in what earlier versions wrote.
            "workload": Workload(stored.get("workload", Workload.TRAINING)),
            "preload": tuple(stored.get("preload", ())),
            **wishes_from_stored(stored),
        }
    )
