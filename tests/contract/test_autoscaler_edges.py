"""Inference services over real gRPC where the kind of database makes no difference: modes, refusals, strangers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from autoscaler_plane import SERVICE, Plane, Replica, Router, running
from scheduler_plane import refused, until

from switchgear.core.errors import Reason
from switchgear.core.modes import Mode
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import job_service_pb2 as job_pb

STATES = pb.Replica


@pytest.fixture
async def plane(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(sqlite_database, tmp_path) as plane:
        yield plane


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize("mode", [Mode.ADVISE, Mode.OBSERVE])
async def test_a_policy_that_may_not_act_changes_no_number(plane: Plane, mode: Mode) -> None:
    await plane.agent("a")
    plane.modes.mode = mode
    await plane.create(1, 3)
    await plane.replica_in(1, STATES.STARTING)
    router = Router(plane, "router")
    await router.routes()
    await router.report(held_requests=50, held_tokens=0, requests_total=50, tokens_total=0)
    await plane.passes()
    plane.clock.advance(4.95)
    await router.report(held_requests=500, held_tokens=100_000, requests_total=500, tokens_total=100_000)
    service = await plane.says(f"only {mode.value.lower()}s")

    async def counted() -> bool:
        return plane.metric("decisions_total", direction="up", mode=mode.value) == 1

    await until(counted)
    service = await plane.get()
    assert service.desired_replicas == 1
    assert service.HasField("advised_replicas") == (mode is Mode.ADVISE)
    if mode is Mode.ADVISE:
        assert service.advised_replicas > 1
        assert f"the advice: goes from 1 to {service.advised_replicas}: " in service.message
    # Keeping the number is no scaling, nor is what a person says.
    await plane.end_job(1, job_pb.Job.FAILED, "killed")
    await plane.replica_in(2, STATES.STARTING)
    assert (await plane.scale(2, 2)).desired_replicas == 2
    await plane.replica_in(3, STATES.STARTING)


async def test_what_the_scheduler_cannot_place_says_so_and_comes_when_it_can(plane: Plane) -> None:
    await plane.create(1, 1)
    assert f"{SERVICE}/replicas/1: asked for 1 node" in (await plane.says("no node has registered yet")).message
    await plane.agent("a")
    await plane.replica_in(1, STATES.STARTING)
    assert "no node" not in (await plane.get()).message


async def test_a_replica_whose_job_name_is_taken_makes_way_for_the_next(plane: Plane) -> None:
    await plane.agent("a")
    spec = job_pb.JobSpec(argv=["train.py"], working_directory="/w", nnodes=1, nproc_per_node=1)
    await plane.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="chat-r1"))
    await plane.create(1, 1)
    failed = await plane.replica_in(1, STATES.FAILED)
    assert "jobs/chat-r1 exists already" in failed.message
    await plane.replica_in(2, STATES.STARTING)


async def test_a_cancelled_job_is_replaced_like_a_lost_one(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(1, 1)
    await plane.replica_in(1, STATES.STARTING)
    await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/chat-r1"))
    assert (await plane.replica_in(1, STATES.STOPPED)).message == "its job was cancelled by somebody"
    await plane.replica_in(2, STATES.STARTING)


async def test_a_job_of_a_replica_that_nobody_knows_is_cancelled(plane: Plane) -> None:
    await plane.agent("a")
    spec = job_pb.JobSpec(
        argv=["serve.py"], working_directory="/w", nnodes=1, nproc_per_node=1, workload=job_pb.JobSpec.INFERENCE,
        environment={"SWITCHGEAR_REPLICA": f"{SERVICE}/replicas/7"},
    )  # fmt: skip
    await plane.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="chat-r7"))

    async def cancelled() -> bool:
        return await plane.job_states() == {"chat-r7": "CANCELLED"}

    await until(cancelled)


async def test_a_process_that_is_no_replica_is_sent_away(plane: Plane) -> None:
    stranger = Replica(plane, 9)
    await until(lambda: _is(stranger.sent_away is not None))
    assert stranger.sent_away is not None
    assert stranger.sent_away.reason is Reason.REPLICA_ENDED


async def test_what_is_wrong_with_a_request_is_said(plane: Plane) -> None:
    service = await plane.create(0, 1)
    assert (await refused(plane.create(0, 1))).reason is Reason.ALREADY_EXISTS
    assert (await refused(plane.scale(2, 1))).metadata["field"] == "min_replicas"
    assert (await refused(plane.scale(0, 5000))).metadata["field"] == "max_replicas"
    scaled = await plane.scale(0, 2, etag=service.etag)
    assert (scaled.spec.max_replicas, scaled.desired_replicas) == (2, 0)
    assert (await refused(plane.scale(0, 3, etag=service.etag))).reason is Reason.ETAG_MISMATCH
    missing = plane.call("GetInferenceService", pb.GetInferenceServiceRequest(name="inferenceServices/none"))
    assert (await refused(missing)).reason is Reason.NOT_FOUND
    nameless = plane.call("CreateInferenceService", pb.CreateInferenceServiceRequest())
    assert (await refused(nameless)).metadata["field"] == "service_id"
