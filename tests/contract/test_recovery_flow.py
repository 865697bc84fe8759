"""A job from its first launcher to its end over real gRPC and on both databases, also when recovery is stopped on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from recovery_world import Launcher, World, running, until

from switchgear.store.database import Database
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2 as wire

JOB = "jobs/llama"
RUNNING, SUCCEEDED = job_pb.Job.RUNNING, job_pb.Job.SUCCEEDED


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(database, tmp_path) as world:
        yield world


def checkpoint(step: int) -> wire.CheckpointReport:
    return wire.CheckpointReport(
        path=f"/w/checkpoints/{step}.pt", state=wire.CheckpointReport.VERIFIED, step=step, size_bytes=10, digest="d"
    )


async def succeed(launcher: Launcher) -> None:
    for rank in list(launcher.alive):
        await launcher.exit(rank, 0)


async def test_a_job_runs_fails_is_restarted_from_a_verified_checkpoint_and_succeeds(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama", checkpoints=True)
    launcher = await world.launcher(agent, JOB)
    start = (await launcher.has("start", 1)).start
    assert launcher.told("verify") == [0]
    assert (start.world_size, start.nnodes, start.resume_path, start.master_port) == (2, 1, "", 4000)
    await launcher.step(7)
    job = await world.job(JOB, RUNNING)
    assert job.message == "attempt 1 runs on nodes/a"
    progress = await world.call("GetJobProgress", pb.GetJobProgressRequest(name=f"{JOB}/progress"))
    assert (progress.generation, progress.step, [rank.pid for rank in progress.ranks]) == (1, 7, [100, 101])

    launcher.checkpoints = [checkpoint(5)]
    await launcher.exit(1, -9)
    await launcher.has("stop", 1)
    start = (await launcher.has("start", 2)).start
    assert (start.resume_path, start.resume_step, start.high_water_step) == ("/w/checkpoints/5.pt", 5, 7)
    await launcher.step(8)
    incident = await world.incident(JOB, pb.Incident.RESOLVED)
    assert (incident.fault, incident.rank, incident.failed_step, incident.resume_step) == ("RANK_KILLED", 1, 7, 5)
    phases = {entry.phase for entry in incident.timeline}
    assert phases >= {"fault", "detected", "stopped", "decided", "started", "first_step", "first_new_step"}
    await world.job(JOB, RUNNING)
    listed = await world.call("ListCheckpoints", pb.ListCheckpointsRequest(parent=JOB))
    assert [(found.step, found.state) for found in listed.checkpoints] == [(5, pb.Checkpoint.VERIFIED)]

    await succeed(launcher)
    await until(lambda: bool(launcher.finished))
    await world.job(JOB, SUCCEEDED)
    assert await world.attempts(JOB) == [(1, pb.Attempt.FAILED), (2, pb.Attempt.SUCCEEDED)]
    progress = await world.call("GetJobProgress", pb.GetJobProgressRequest(name=f"{JOB}/progress"))
    assert (progress.steps_productive, progress.steps_redone) == (8, 2)
