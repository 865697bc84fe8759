"""What becomes of a job when nodes fail it, over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scheduler_plane import Agent, Plane, refused, running, until

from switchgear.core.clock import ManualClock
from switchgear.core.errors import Reason
from switchgear.scheduler.engines.local import START_FAILURES_MAX
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import placement_service_pb2 as placement_pb


@pytest.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(database, ManualClock(), tmp_path) as plane:
        yield plane


async def test_a_lost_node_is_replaced_and_the_others_keep_their_launchers(plane: Plane) -> None:
    agents = {name: await plane.agent(name) for name in "abc"}
    await plane.create("llama", nnodes=2)
    for name in "ab":
        assert (await agents[name].obey()).start_launcher.placement_epoch == 1
    request = placement_pb.ReplaceNodesRequest(
        job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"], reason="gpu lost", request_id="1"
    )
    job = await plane.placement.ReplaceNodes(request)
    assert [(seat.node, seat.launcher_epoch) for seat in job.placement.nodes] == [("nodes/c", 2), ("nodes/b", 1)]
    assert (await agents["c"].obey()).start_launcher.placement_epoch == 2
    assert (await agents["a"].obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/llama", placement_epoch=1)
    assert len(agents["b"].commands) == 1
    assert await plane.placement.ReplaceNodes(request) == job
    request.request_id = "2"
    error = await refused(plane.placement.ReplaceNodes(request))
    assert (error.code, error.reason) == ("ABORTED", Reason.PLACEMENT_CHANGED)


async def test_the_end_of_an_agents_connection_is_known_at_once_and_a_node_never_heard_is_unknown(plane: Plane) -> None:
    agent = await plane.agent("a")
    request = placement_pb.GetNodeContactRequest(name="nodes/a")
    assert (await plane.placement.GetNodeContact(request)).agent_connected
    await agent.disconnect()

    async def gone() -> bool:
        return not (await plane.placement.GetNodeContact(request)).agent_connected

    await until(gone)
    error = await refused(plane.placement.GetNodeContact(placement_pb.GetNodeContactRequest(name="nodes/z")))
    assert error.reason == Reason.NOT_FOUND


async def test_a_job_that_may_be_smaller_goes_on_with_what_is_left_and_is_whole_again_when_asked_for_later(
    plane: Plane,
) -> None:
    a, b = await plane.agent("a"), await plane.agent("b")
    spec = job_pb.JobSpec(argv=["train.py"], working_directory="/work", nnodes=2, nnodes_min=1, nproc_per_node=2)
    await plane.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="llama"))
    for agent in (a, b):
        assert (await agent.obey()).start_launcher.placement_epoch == 1
    lost = placement_pb.ReplaceNodesRequest(job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"])
    job = await plane.placement.ReplaceNodes(lost)
    assert [(seat.node, seat.launcher_epoch) for seat in job.placement.nodes] == [("nodes/b", 1)]
    assert job.message == "placed anew on nodes/b (1 of 2 nodes: no more are free)"
    assert (await a.obey()).HasField("stop_launcher")
    later = placement_pb.ReplaceNodesRequest(job="jobs/llama", placement_epoch=2)

    async def whole() -> bool:
        later.placement_epoch = job_epoch = (
            await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/llama"))
        ).placement.epoch
        grown = await plane.placement.ReplaceNodes(later)
        assert grown.placement.epoch == job_epoch + 1
        return [(seat.node, seat.launcher_epoch) for seat in grown.placement.nodes[:1]] == [("nodes/b", 1)] and len(
            grown.placement.nodes
        ) == 2

    await until(whole)  # as soon as the agent has told that the launcher is gone


async def test_without_a_replacement_the_job_waits_until_the_node_is_mended(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/a", reason="gpu lost", actor="policy:recovery"))
    request = placement_pb.ReplaceNodesRequest(job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"])
    job = await plane.placement.ReplaceNodes(request)
    assert (job.state, list(job.placement.nodes)) == (job_pb.Job.PENDING, [])
    assert (await agent.obey()).HasField("stop_launcher")
    await plane.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/a"))
    assert (await agent.obey()).start_launcher.placement_epoch == 2


async def test_without_a_spare_a_node_that_was_only_out_of_touch_is_taken_again(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    request = placement_pb.ReplaceNodesRequest(job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"])
    assert (await plane.placement.ReplaceNodes(request)).state == job_pb.Job.PENDING
    assert (await agent.obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/llama", placement_epoch=1)
    assert (await agent.obey()).start_launcher.placement_epoch == 2


async def test_uncordoning_a_node_that_is_not_cordoned_gives_it_back_to_jobs_that_excluded_it(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    agents = {name: await plane.agent(name) for name in "ab"}
    await plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/b", reason="fan"))
    await plane.create("llama")
    await fail_to_start(plane, agents["a"], caplog)
    await plane.job_in("jobs/llama", job_pb.Job.PENDING)
    await plane.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/a"))
    await agents["a"].told_to_start(epoch=2)


async def test_a_node_that_cannot_start_a_launcher_is_replaced_by_one_that_can(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    agents = {name: await plane.agent(name) for name in "ab"}
    await plane.create("llama")
    await fail_to_start(plane, agents["a"], caplog)
    assert (await agents["b"].obey()).start_launcher.placement_epoch == 2


async def test_a_launcher_that_cannot_be_started_fails_the_job_in_the_end(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await fail_to_start(plane, agent, caplog)
    job = await plane.job_in("jobs/llama", job_pb.Job.FAILED)
    assert job.message == "its launcher could not be started on nodes/a: disk is full"


async def fail_to_start(plane: Plane, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """As often as it takes until the node is taken at its word."""
    for failures in range(1, START_FAILURES_MAX + 1):
        await agent.told_to_start(epoch=1)
        await agent.failed("jobs/llama", 1, "disk is full")

        async def taken(failures: int = failures) -> bool:
            return caplog.text.count("launcher could not be started") == failures

        await until(taken)
        if failures < START_FAILURES_MAX:
            # The wait before the next try counts from when the failure was taken. After the last one none is due.
            plane.clock.advance(3)
            await agent.heartbeat()
