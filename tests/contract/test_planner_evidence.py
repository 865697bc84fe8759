"""What recovery knows of attempts and incidents reaches the planner, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import recovery_plane
import scheduler_plane
from recovery_plane import World
from scheduler_plane import Plane, refused, until

from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.planner.model import Snapshot
from switchgear.planner.records import snapshot_from_json
from switchgear.recovery import model as m
from switchgear.recovery import store
from switchgear.scheduler.evidence_store import newest_attempts
from switchgear.scheduler.model import AttemptRecord, Rules
from switchgear.scheduler.trust import Trust
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import planner_service_pb2 as planner_pb
from switchgear.v1alpha.planner_service_pb2_grpc import PlannerServiceStub


@pytest.fixture
async def world(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with recovery_plane.running(sqlite_database, tmp_path) as world:
        yield world


@pytest.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with scheduler_plane.running(database, ManualClock(), tmp_path) as plane:
        yield plane


async def seen(channel: grpc.aio.Channel) -> Snapshot:
    planner: Any = PlannerServiceStub(channel)
    answer = await planner.GetPlannerSnapshot(planner_pb.GetPlannerSnapshotRequest())
    return snapshot_from_json(zlib.decompress(answer.json_zlib))[0]


async def attempts(database: Database) -> tuple[AttemptRecord, ...]:
    async with database.read() as session:
        return await newest_attempts(session)


async def test_a_node_counts_as_accused_while_its_incident_is_open_and_as_having_held_up_the_job(world: World) -> None:
    a, b = await world.agent("a"), await world.agent("b")
    await world.create("llama")
    first = await world.launcher(a, "jobs/llama")
    await first.has("start", 1)
    await first.step(7)
    await world.job("jobs/llama", job_pb.Job.RUNNING)
    trust = Trust(keep_s=0.3)
    async with rpc.channel(world.recovery_address) as channel:
        following = asyncio.create_task(trust.follow_incidents(channel))
        await a.event(code=79, text="NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")

        async def accused() -> bool:
            return [node.name for node in (await seen(world.channel)).nodes if node.incident] == ["nodes/a"]

        async def heard(nodes: frozenset[str]) -> bool:
            return trust.added_to(Rules()).incidents == nodes

        await until(accused)
        await until(lambda: heard(frozenset({"nodes/a"})))

        async def reported() -> bool:
            return [(one.nodes, one.held_up_by) for one in await attempts(world.database)] == [
                (("nodes/a",), "nodes/a")
            ]

        await until(reported)  # once, and not again after a restart
        # What was told last holds for a while; then nothing is known.
        await world.stop_recovery()
        assert await heard(frozenset({"nodes/a"}))
        await until(lambda: heard(frozenset()))
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
    assert await accused()
    await world.start_recovery()
    second = await world.launcher(b, "jobs/llama")
    generation = (await second.has("start", 2)).generation
    await second.step(8)
    await world.incident("jobs/llama", pb.Incident.RESOLVED)

    async def over() -> bool:
        nodes = (await seen(world.channel)).nodes
        return len(nodes) == 2 and not any(node.incident for node in nodes)

    await until(over)
    for rank in list(second.alive):
        await second.exit(rank, 0)
    await world.job("jobs/llama", job_pb.Job.SUCCEEDED)

    async def told() -> bool:
        known = {one.generation: (one.nodes, one.held_up_by) for one in await attempts(world.database)}
        return known == {1: (("nodes/a",), "nodes/a"), generation: (("nodes/b",), "")}

    await until(told)


async def test_incidents_that_do_not_fit_into_one_message_are_all_known(
    sqlite_database: Database, tmp_path: Path
) -> None:
    long = [f"{number:02} ".ljust(4000, "x") for number in range(20)]
    job = m.JobState("jobs/llama", m.Spec(1, 1, 3, ""), create_ns=1, phase=m.Phase.ENDED, end_ns=2)
    open_ones = [
        m.Incident(
            f"llama-{n}",
            job.job,
            m.IncidentState.OPEN,
            m.Fault.GPU_LOST,
            f"nodes/n{n}",
            evidence=long,
            timeline={"detected": 1},
        )
        for n in range(110)
    ]
    async with sqlite_database.write() as session:
        for incident in open_ones:
            await store.save(session, job, [m.SaveIncident(incident)])
    trust = Trust()
    async with (
        recovery_plane.running(sqlite_database, tmp_path) as world,
        rpc.channel(world.recovery_address) as channel,
    ):
        following = asyncio.create_task(trust.follow_incidents(channel))

        async def all_known() -> bool:
            return len(trust.added_to(Rules()).incidents) == len(open_ones)

        await until(all_known)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_speeds_by_gpu_model_and_the_share_of_jobs_held_up_come_from_attempts_that_are_over(plane: Plane) -> None:
    for name, model in (("fast", "NVIDIA H100"), ("slow", "NVIDIA A100")):
        agent = scheduler_plane.Agent(plane.channel, name)
        for gpu in agent.node.gpus:
            gpu.model = model
        await agent.connect()
        await listed(plane, agent.name)
    for job in range(6):
        await plane.jobs.CreateJob(held_job(f"j{job}"))
        node, rate = ("nodes/fast", 4) if job % 2 else ("nodes/slow", 2)
        report = placement_pb.ReportAttemptRequest(job=f"jobs/j{job}", generation=1, nodes=[node])
        report.steps, report.seconds = rate * 100, 100
        await plane.placement.ReportAttempt(report)
        await plane.placement.ReportAttempt(report)
    (one, *others) = (await seen(plane.channel)).pending
    assert one.speeds == {"NVIDIA H100": 1.41, "NVIDIA A100": 0.71}
    assert all(other.speeds == one.speeds for other in others)
    for job in range(6, 8):
        await plane.jobs.CreateJob(held_job(f"j{job}"))
        report = placement_pb.ReportAttemptRequest(job=f"jobs/j{job}", generation=1, held_up_by="nodes/fast")
        await plane.placement.ReportAttempt(report)
    assert await straggling(plane) == {"nodes/fast": 2 / 5, "nodes/slow": None}
    # Somebody has looked after it.
    await plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/fast", reason="slow", actor="ann"))
    await plane.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/fast", actor="ann"))
    assert await straggling(plane) == {"nodes/fast": None, "nodes/slow": None}
    nobody = placement_pb.ReportAttemptRequest(job="jobs/nobody", generation=1)
    assert (await refused(plane.placement.ReportAttempt(nobody))).code == "NOT_FOUND"


async def listed(plane: Plane, name: str) -> None:
    async def there() -> bool:
        return name in [node.name for node in (await plane.fleet.ListNodes(fleet_pb.ListNodesRequest())).nodes]

    await until(there)


def held_job(job_id: str) -> job_pb.CreateJobRequest:
    spec = job_pb.JobSpec(argv=["train.py"], working_directory="/w", nnodes=1, nproc_per_node=2, hold=True, user="ann")
    return job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id=job_id)


async def straggling(plane: Plane) -> dict[str, float | None]:
    return {node.name: node.straggling for node in (await seen(plane.channel)).nodes}
