"""A replica that takes the GPUs of training at a checkpoint, and training that goes on from it: scheduler and recovery over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from recovery_plane import NOWHERE, Agent, Launcher, World, running, until

from switchgear.autoscaler import main as autoscaling
from switchgear.cli.main import main
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.service import Endpoints
from switchgear.planner.model import Policy
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as scaling_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1.autoscaler_service_pb2_grpc import AutoscalerServiceStub
from switchgear.v1alpha import launcher_service_pb2 as wire

LLAMA, CHAT = "jobs/llama", "jobs/chat-r1"
S = 1_000_000_000


@pytest.fixture
async def world(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(sqlite_database, tmp_path, policy=Policy(guaranteed_run_s=60.0)) as world:
        yield world


async def trains(world: World, agent: Agent, name: str = "llama", *, saved_s: int = 30) -> Launcher:
    """A training job that has both GPUs of the node, with checkpoints 40 s apart, the newest `saved_s` old."""
    await world.create(name, checkpoints=True)
    launcher = await world.launcher(agent, f"jobs/{name}")
    await launcher.has("start", 1)
    await launcher.step(1)
    await world.job(f"jobs/{name}", job_pb.Job.RUNNING)
    now_ns = await world.later(80)
    for step, ago_s in ((3, saved_s + 40), (5, saved_s)):
        await saves(launcher, step, now_ns - ago_s * S)
    await launcher.step(7)
    return launcher


async def saves(launcher: Launcher, step: int, commit_ns: int) -> None:
    report = wire.CheckpointReport(
        path=f"/w/checkpoints/{step}.pt", state=wire.CheckpointReport.VERIFIED, step=step, size_bytes=10,
        digest=f"d{step}", commit_time_unix_ns=commit_ns,
    )  # fmt: skip
    launcher.checkpoints.insert(0, report)
    await launcher.report(checkpoint=report)


async def serve(world: World, number: int = 1, priority: int = 10, gpus: int = 1) -> None:
    spec = job_pb.JobSpec(
        argv=["serve.py"], working_directory="/w", nnodes=1, nproc_per_node=gpus, priority=priority,
        workload=job_pb.JobSpec.INFERENCE,
    )  # fmt: skip
    await world.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id=f"chat-r{number}"))


async def get(world: World, name: str) -> job_pb.Job:
    found: job_pb.Job = await world.jobs.GetJob(job_pb.GetJobRequest(name=name))
    return found


async def leaves(world: World, name: str = LLAMA) -> job_pb.Job:
    async def asked() -> bool:
        return (await get(world, name)).HasField("leaving")

    await until(asked)
    return await get(world, name)


async def test_training_gives_way_at_its_next_checkpoint_and_goes_on_from_it_when_the_replica_is_gone(
    world: World,
) -> None:
    agent = await world.agent("a")
    launcher = await trains(world, agent)
    await serve(world)
    asked = await leaves(world)
    # 30 s of two GPUs would be done again: worth 15 s of the GPU that people wait for, and the next checkpoint is due in 10 s.
    now_ns = await world.later(0)
    assert (asked.leaving.for_job, asked.leaving.by.ToNanoseconds() - now_ns) == (CHAT, 15 * S)
    assert asked.message == f"is to leave at its next checkpoint, for {CHAT}"
    assert (await get(world, CHAT)).wait_cause == "PREEMPTING"
    await launcher.step(9)
    launcher.held.add("stop")
    await saves(launcher, 9, await world.later(8) - S)
    told = await world.job(LLAMA, job_pb.Job.PREEMPTED)
    assert told.message == f"its ranks are being stopped at the checkpoint that was awaited, for {CHAT}"
    assert (await get(world, CHAT)).state == job_pb.Job.PENDING  # nothing starts beside ranks that are alive
    for rank in list(launcher.alive):
        await launcher.exit(rank, 0, by_us=True)
    launcher.held.clear()

    replica = await world.launcher(agent, CHAT)
    await replica.has("start", 1)
    lent = await get(world, LLAMA)
    assert (lent.state, lent.lent.to_job, lent.lent.gpus, lent.preemptions) == (job_pb.Job.PENDING, CHAT, 2, 1)
    agent.started.pop(LLAMA, None)

    await world.jobs.CancelJob(job_pb.CancelJobRequest(name=CHAT))
    await until(lambda: bool(replica.finished))
    await world.later(16)  # its launcher is stopped if it has not ended by itself
    again = await world.launcher(agent, LLAMA)
    again.checkpoints = launcher.checkpoints
    start = (await again.has("start", 2)).start
    assert (start.resume_path, start.resume_step, start.high_water_step) == ("/w/checkpoints/9.pt", 9, 9)
    back = await get(world, LLAMA)
    assert (back.HasField("lent"), back.wait_cause) == (False, "")


async def test_a_checkpoint_that_is_far_away_is_not_awaited_and_the_reason_says_so(world: World) -> None:
    agent = await world.agent("a")
    launcher = await trains(world, agent, saved_s=10)
    launcher.held.add("stop")
    await serve(world)
    # 10 s of two GPUs are worth 5 s of waiting, and the next checkpoint is due in 30 s.
    told = await world.job(LLAMA, job_pb.Job.PREEMPTED)
    assert told.message == f"its ranks are being stopped at once, since its next checkpoint is too far away, for {CHAT}"


async def test_one_that_is_asked_to_leave_is_enough_however_often_is_planned(world: World) -> None:
    for name in ("a", "b"):
        await trains(world, await world.agent(name), name)
        await world.later(32)
    for name in ("a", "b"):
        (await world.job(f"jobs/{name}", job_pb.Job.RUNNING))
    await serve(world, gpus=2)

    async def leaving() -> list[str]:
        listed = await world.jobs.ListJobs(job_pb.ListJobsRequest())
        return [job.name for job in listed.jobs if job.HasField("leaving") or job.state == job_pb.Job.PREEMPTED]

    async def asked() -> bool:
        return bool(await leaving())

    await until(asked)
    first = await leaving()
    for _ in range(3):
        await world.later(4)
    assert (await leaving(), len(first)) == (first, 1)


async def test_training_is_not_interrupted_again_before_it_has_run_for_its_guaranteed_time(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama", checkpoints=True)
    launcher = await world.launcher(agent, LLAMA)
    await launcher.has("start", 1)
    await world.later(40)
    await serve(world)
    assert (await world.job(LLAMA, job_pb.Job.STARTING)).leaving.for_job == ""
    await world.later(32)  # 60 s are over, and it has no checkpoint that could be awaited
    await world.job(LLAMA, job_pb.Job.PREEMPTED)


async def test_nobody_gives_way_to_a_service_without_a_higher_claim(world: World) -> None:
    agent = await world.agent("a")
    await trains(world, agent)
    await serve(world, priority=0)

    async def told() -> bool:
        return (await get(world, CHAT)).wait_cause == "GPUS"

    await until(told)
    assert (await get(world, LLAMA)).state == job_pb.Job.RUNNING


@asynccontextmanager
async def autoscaler(world: World) -> AsyncIterator[tuple[str, ManualClock]]:
    """Of the same database; its address and its clock."""
    clock, server = ManualClock(), rpc.Server()
    service = autoscaling.build(world.database, clock, pass_interval_s=0.05)
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    runs = asyncio.create_task(service.run(Endpoints(NOWHERE, world.plane_address, NOWHERE, address, "")))
    try:
        yield address, clock
    finally:
        runs.cancel()
        await asyncio.gather(runs, return_exceptions=True)
        await server.stop(0)


async def test_a_service_borrows_shows_whose_gpus_it_has_and_keeps_them_for_a_while(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await world.agent("a")
    launcher = await trains(world, agent, saved_s=10)
    async with autoscaler(world) as (address, clock), rpc.channel(address) as channel:
        services: Any = AutoscalerServiceStub(channel)  # type: ignore[no-untyped-call]
        clock.advance(1000)
        spec = scaling_pb.InferenceServiceSpec(
            argv=["serve.py"], working_directory="/w", min_replicas=1, max_replicas=2, priority=10
        )
        create = scaling_pb.CreateInferenceServiceRequest(
            inference_service=scaling_pb.InferenceService(spec=spec), service_id="chat"
        )
        await services.CreateInferenceService(create)
        await launcher.has("stop", 1)
        replica = await world.launcher(agent, CHAT)

        async def show() -> scaling_pb.InferenceService:
            found: scaling_pb.InferenceService = await services.GetInferenceService(
                scaling_pb.GetInferenceServiceRequest(name="inferenceServices/chat")
            )
            return found

        async def borrows() -> bool:
            return len((await show()).loans) == 1

        await until(borrows)
        (loan,) = (await show()).loans
        assert (loan.lender, loan.replica, loan.gpus) == (LLAMA, "inferenceServices/chat/replicas/1", 1)
        await asyncio.to_thread(main, ["services", "--server", address, "chat"])
        assert "borrows 1 GPU of jobs/llama since" in capsys.readouterr().out
        await asyncio.to_thread(main, ["jobs", "--server", world.plane_address])
        assert "(gave 2 GPUs to jobs/chat-r1 at" in capsys.readouterr().out
        # What the user says holds at once; the replica ends, and its job with it.
        agent.started.pop(LLAMA, None)
        await services.DeleteInferenceService(scaling_pb.DeleteInferenceServiceRequest(name="inferenceServices/chat"))
        await until(lambda: bool(replica.finished))
        await world.later(16)  # its launcher is stopped if it has not ended by itself
        assert (await world.launcher(agent, LLAMA)).epoch == 2
