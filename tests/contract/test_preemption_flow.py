"""A job that leaves its nodes and goes on later, over real gRPC with scheduler and recovery: every rank gone before anything else starts."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from recovery_plane import World, running, until

from switchgear.planner.records import snapshot_from_json
from switchgear.store.database import Database
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2 as wire
from switchgear.v1alpha import planner_service_pb2 as planner_pb
from switchgear.v1alpha.planner_service_pb2_grpc import PlannerServiceStub

JOB = "jobs/llama"


@pytest.fixture
async def world(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(sqlite_database, tmp_path) as world:
        yield world


async def test_a_job_that_is_requeued_goes_on_from_its_checkpoint_also_when_recovery_is_stopped_on_the_way(
    world: World,
) -> None:
    agent = await world.agent("a")
    await world.create("llama", checkpoints=True)
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await launcher.step(7)
    await world.job(JOB, job_pb.Job.RUNNING)
    launcher.checkpoints = [
        wire.CheckpointReport(
            path="/w/checkpoints/5.pt", state=wire.CheckpointReport.VERIFIED, step=5, size_bytes=10, digest="d"
        )
    ]
    # Its ranks do not end before recovery has been away and come back.
    launcher.held.add("stop")
    await world.jobs.RequeueJob(job_pb.RequeueJobRequest(name=JOB, hold=True))
    stop = (await launcher.has("stop", 1)).stop
    assert stop.grace_seconds > 0
    assert (await world.job(JOB, job_pb.Job.PREEMPTED)).placement.nodes
    await world.restart_recovery()
    await until(lambda: launcher.told("stop").count(1) >= 2)
    assert (await world.job(JOB, job_pb.Job.PREEMPTED)).placement.nodes
    launcher.held.clear()
    for rank in list(launcher.alive):
        await launcher.exit(rank, 0, by_us=True)
    job = await world.job(JOB, job_pb.Job.PENDING)
    assert (job.held, len(job.placement.nodes)) == ("by its user", 0)
    await until(lambda: bool(launcher.finished))

    agent.started.pop(JOB, None)
    await world.jobs.ReleaseJob(job_pb.ReleaseJobRequest(name=JOB))
    again = await world.launcher(agent, JOB)
    assert again.epoch == 2
    again.checkpoints = launcher.checkpoints
    start = (await again.has("start", 2)).start
    assert (start.resume_path, start.resume_step, start.high_water_step) == ("/w/checkpoints/5.pt", 5, 7)
    await again.step(8)
    for rank in list(again.alive):
        await again.exit(rank, 0)
    await world.job(JOB, job_pb.Job.SUCCEEDED)
    assert await world.attempts(JOB) == [(1, pb.Attempt.STOPPED), (2, pb.Attempt.SUCCEEDED)]
    incidents = await world.call("ListIncidents", pb.ListIncidentsRequest())
    assert not incidents.incidents


async def test_what_the_collector_concludes_of_a_node_is_known_to_the_planner(world: World) -> None:
    agent = await world.agent("a")
    await agent.event(code=79, text="NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")
    planner: Any = PlannerServiceStub(world.channel)

    async def known() -> bool:
        answer = await planner.GetPlannerSnapshot(planner_pb.GetPlannerSnapshotRequest())
        snapshot, _ = snapshot_from_json(zlib.decompress(answer.json_zlib))
        return [node.health for node in snapshot.nodes] == [0.0]

    await until(known)
