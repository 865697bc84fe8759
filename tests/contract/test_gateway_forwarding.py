"""gRPC at the gateway is gRPC at the service behind it: the same calls, the same answers, errors and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from recovery_plane import NOWHERE, World, refusal, running, until

from switchgear.cli.compose import ENDPOINTS
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.errors import Reason, SwitchgearError, Unavailable
from switchgear.core.service import Endpoints
from switchgear.gateway.front_door import build
from switchgear.store.database import Database
from switchgear.store.policies import PolicyModes
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import policy_service_pb2 as policy_pb
from switchgear.v1.job_service_pb2_grpc import JobServiceStub
from switchgear.v1.policy_service_pb2_grpc import PolicyServiceStub
from switchgear.v1.recovery_service_pb2 import ListIncidentsRequest
from switchgear.v1.recovery_service_pb2_grpc import RecoveryServiceStub
from switchgear.v1alpha.placement_service_pb2 import ReplaceNodesRequest
from switchgear.v1alpha.placement_service_pb2_grpc import PlacementServiceStub


@pytest.fixture
async def world(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(sqlite_database, tmp_path) as world:
        yield world


@asynccontextmanager
async def gateway(world: World, scheduler: str = "") -> AsyncIterator[grpc.aio.Channel]:
    service = build(
        world.database, SystemClock(), PolicyModes(world.database), [name for name in ENDPOINTS if name != "gateway"]
    )
    server = rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    endpoints = Endpoints(
        world.plane_address, scheduler or world.plane_address, world.recovery_address, NOWHERE, address
    )
    task = asyncio.create_task(service.run(endpoints))
    try:
        async with rpc.channel(address) as channel:
            yield channel
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(0)


def jobs_at(channel: grpc.aio.Channel) -> Any:
    return JobServiceStub(channel)


def told(error: SwitchgearError) -> tuple[str, Reason, str, dict[str, str]]:
    return error.code, error.reason, error.message, error.metadata


async def test_calls_are_answered_as_by_the_service_itself(world: World) -> None:
    await world.agent("a")
    async with gateway(world) as channel:
        jobs = jobs_at(channel)
        spec = job_pb.JobSpec(argv=["train.py"], working_directory="/w", nnodes=1, nproc_per_node=2)
        await jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="train"))

        async def alike() -> bool:  # the job goes on between the two calls
            listed = await jobs.ListJobs(job_pb.ListJobsRequest())
            return bool(listed.jobs) and listed == await world.jobs.ListJobs(job_pb.ListJobsRequest())

        await until(alike)
        missing = job_pb.GetJobRequest(name="jobs/none")
        assert told(await refusal(jobs.GetJob(missing))) == told(await refusal(world.jobs.GetJob(missing)))
        large = job_pb.CreateJobRequest(
            job=job_pb.Job(spec=job_pb.JobSpec(argv=["x"], working_directory="/w", nnodes=99))
        )
        assert told(await refusal(jobs.CreateJob(large))) == told(await refusal(world.jobs.CreateJob(large)))
        recovery: Any = RecoveryServiceStub(channel)
        assert not (await recovery.ListIncidents(ListIncidentsRequest())).incidents
        policies: Any = PolicyServiceStub(channel)
        assert len((await policies.ListPolicies(policy_pb.ListPoliciesRequest())).policies) == 3


async def test_a_watch_goes_on_until_the_caller_ends_it(world: World) -> None:
    async with gateway(world) as channel:
        watch = jobs_at(channel).WatchJobs(job_pb.WatchJobsRequest())
        first = await asyncio.wait_for(watch.read(), 10)
        assert first is not grpc.aio.EOF
        spec = job_pb.JobSpec(argv=["train.py"], working_directory="/w", nnodes=1, nproc_per_node=1)
        await world.agent("a")
        await world.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="seen"))

        async def seen() -> bool:
            change = await watch.read()
            return change is not grpc.aio.EOF and change.job.name == "jobs/seen"

        await until(seen)
        assert watch.cancel()
        too_new = jobs_at(channel).WatchJobs(job_pb.WatchJobsRequest(revision=10**9))
        assert (await refusal(too_new.read())).reason is Reason.REVISION_UNKNOWN


async def test_the_callers_deadline_holds_behind_the_gateway(world: World) -> None:
    async with gateway(world) as channel:
        watch = jobs_at(channel).WatchJobs(job_pb.WatchJobsRequest(), timeout=0.5)
        assert await asyncio.wait_for(watch.read(), 10) is not grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(watch.read(), 10)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_service_that_is_away_is_named(world: World) -> None:
    async with gateway(world, scheduler=NOWHERE) as channel:
        away = await refusal(jobs_at(channel).ListJobs(job_pb.ListJobsRequest()))
        assert isinstance(away, Unavailable)
        assert (away.reason, away.metadata) == (Reason.SERVER_UNREACHABLE, {"service": "scheduler"})


async def test_what_our_processes_say_to_each_other_is_not_handed_on(world: World) -> None:
    async with gateway(world) as channel:
        placement: Any = PlacementServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await placement.ReplaceNodes(ReplaceNodesRequest())
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
