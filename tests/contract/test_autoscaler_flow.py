"""Inference services over real gRPC and on both databases: from the first request to zero again, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from autoscaler_plane import SERVICE, Plane, Replica, Router, running
from scheduler_plane import until

from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import job_service_pb2 as job_pb

STATES = pb.Replica


@pytest.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(database, tmp_path) as plane:
        yield plane


async def test_a_replica_is_a_job_that_becomes_ready_and_is_routed_to(plane: Plane) -> None:
    await plane.agent("a")
    router = Router(plane, "router")
    service = await plane.create(1, 2, gpus_per_replica=2)
    assert (service.name, service.desired_replicas, service.spec.slo.ttft_seconds) == (SERVICE, 1, 2.0)
    starting = await plane.replica_in(1, STATES.STARTING)
    assert (starting.job, starting.node, starting.address) == ("jobs/chat-r1", "nodes/a", "")
    spec = (await plane.job(1)).spec
    assert (list(spec.argv), spec.nnodes, spec.nproc_per_node, spec.max_restarts) == (
        ["serve.py", "--batch", "4"],
        1,
        2,
        0,
    )
    assert dict(spec.environment) == {"A": "1", "SWITCHGEAR_REPLICA": f"{SERVICE}/replicas/1"}
    assert spec.workload == job_pb.JobSpec.INFERENCE
    await router.routes()
    replica = Replica(plane, 1)
    await plane.passes()
    await router.routes()  # connected, and not ready yet
    await replica.load(running_requests=1)
    ready = await plane.replica_in(1, STATES.READY)
    assert (ready.address, ready.running_requests, ready.waiting_requests) == ("127.0.0.1:9001", 1, 0)
    await router.routes(1)
    assert (await plane.get()).ready_replicas == 1
    assert plane.metric("replicas", state="READY") == 1


async def test_a_held_request_brings_the_first_replica_and_silence_takes_it_away(plane: Plane) -> None:
    await plane.agent("a")
    service = await plane.create(0, 1, scale_down_delay_seconds=20)
    assert (service.desired_replicas, service.message) == (0, "begins with 0: the first request brings more")
    router = Router(plane, "router")
    await router.routes()
    plane.clock.advance(1)
    await router.report(held_requests=1, held_tokens=30, requests_total=1, tokens_total=30)
    replica = await plane.ready(1)
    assert (await plane.get()).message.startswith("goes from 0 to 1: ")
    await router.routes(1)
    await router.report(replicas={replica.name: 1}, requests_total=1, tokens_total=30)
    await plane.passes()
    for _ in range(5):
        plane.clock.advance(10)
        await router.report(replicas={replica.name: 1}, requests_total=1, tokens_total=30)
        await plane.passes()
    assert (await plane.get()).desired_replicas == 1  # a long request is still a request

    async def wanted() -> int:
        plane.clock.advance(4)
        await router.report(requests_total=1, tokens_total=30, completed_requests_total=1)
        await asyncio.sleep(0.1)
        return (await plane.get()).desired_replicas

    waited = 0
    while await wanted():
        waited += 1
        assert waited < 100
    assert waited >= 4  # less must suffice for 20 s first
    await router.routes(draining=[1])
    await router.report(requests_total=1, tokens_total=30)
    await plane.replica_in(1, STATES.STOPPED)
    assert await plane.job_states() == {"chat-r1": "CANCELLED"}
    assert plane.metric("decisions_total", direction="up", mode="ACT") == 1
    assert plane.metric("decisions_total", direction="down", mode="ACT") == 1


async def test_a_drained_replica_ends_only_when_every_router_knows_and_nothing_is_in_it(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(2, 2)
    one, other = Router(plane, "one"), Router(plane, "other")
    first, second = await plane.ready(1), await plane.ready(2)
    for router in (one, other):
        await router.routes(1, 2)
        await router.report(replicas={first.name: 2, second.name: 1})
    await first.load(running_requests=4)
    await second.load(running_requests=2)
    plane.clock.advance(21)  # routers have had the time to connect
    await plane.scale(1, 1)
    drained = await plane.replica_in(2, STATES.DRAINING)  # fewer requests are in it
    assert drained.message == "finishes its requests"
    await second.draining.wait()
    for router in (one, other):
        await router.routes(1, draining=[2])
    await second.load()
    await one.report(replicas={first.name: 2})
    await other.report(acknowledge=False, replicas={first.name: 2})
    await plane.passes()
    assert (await plane.job_states())["chat-r2"] == "STARTING"  # the other may still send it something
    await other.report(replicas={first.name: 2, second.name: 1})
    await plane.passes()
    assert (await plane.job_states())["chat-r2"] == "STARTING"  # and had
    await other.report(replicas={first.name: 2})
    stopped = await plane.replica_in(2, STATES.STOPPED)
    assert stopped.message == "had finished its requests"
    assert await plane.job_states() == {"chat-r1": "STARTING", "chat-r2": "CANCELLED"}
    await one.routes(1)
    await until(lambda: _is(second.sent_away is not None))


async def test_a_drain_waits_for_a_router_that_was_cut_off_a_moment_ago(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await plane.agent("a")
    await plane.create(1, 1, drain_timeout_seconds=600)
    router, lost = Router(plane, "router"), Router(plane, "lost")
    await plane.ready(1)
    for one in (router, lost):
        await one.routes(1)
    plane.clock.advance(21)
    lost.cut_off()
    # From then on its minute runs; that it says nothing would be known without.
    await until(lambda: _is("router disconnected" in caplog.messages))
    await until(
        lambda: _is(plane.metric("demand_tokens_per_second") != plane.metric("demand_tokens_per_second"))
    )  # NaN
    await plane.call("DeleteInferenceService", pb.DeleteInferenceServiceRequest(name=SERVICE))
    await router.routes(draining=[1])
    await router.report()
    await plane.passes()
    assert await plane.job_states() == {"chat-r1": "STARTING"}  # the lost one goes by its last table
    plane.clock.advance(61)

    async def cancelled() -> bool:
        await router.report()
        return await plane.job_states() == {"chat-r1": "CANCELLED"}

    await until(cancelled)


async def _is(value: bool) -> bool:
    return value


async def test_a_replica_that_does_not_get_done_is_stopped_after_its_time(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(1, 1, drain_timeout_seconds=30)
    replica = await plane.ready(1)
    await replica.load(running_requests=1)
    plane.clock.advance(21)
    await plane.call("DeleteInferenceService", pb.DeleteInferenceServiceRequest(name=SERVICE))
    await plane.replica_in(1, STATES.DRAINING)
    plane.clock.advance(29)
    await plane.passes()
    assert await plane.job_states() == {"chat-r1": "STARTING"}
    plane.clock.advance(2)

    async def gone() -> bool:
        return (await plane.job_states())["chat-r1"] == "CANCELLED"

    await until(gone)


async def test_a_lost_replica_is_replaced_at_once_and_a_crash_loop_slows_down(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(1, 1)
    (await plane.ready(1)).die()
    await plane.end_job(1, job_pb.Job.FAILED, "rank 0 was killed by SIGKILL")
    failed = await plane.replica_in(1, STATES.FAILED)
    assert failed.message == "rank 0 was killed by SIGKILL"
    await plane.replica_in(2, STATES.STARTING)
    await plane.end_job(2, job_pb.Job.FAILED, "no such checkpoint")
    service = await plane.says("2 replicas in a row")
    assert "the next one waits 1 s; inferenceServices/chat/replicas/2: no such checkpoint" in service.message
    assert service.desired_replicas == 1
    await plane.passes()
    assert sorted(await plane.replicas()) == [1, 2]
    plane.clock.advance(1.1)
    await plane.replica_in(3, STATES.STARTING)
    await plane.end_job(3, job_pb.Job.SUCCEEDED)
    assert (await plane.replica_in(3, STATES.STOPPED)).message == "its job ended by itself"
    assert "waits 2 s" in (await plane.says("3 replicas in a row")).message
    plane.clock.advance(2.1)
    await plane.ready(4)
    plane.clock.advance(11)
    await plane.end_job(4, job_pb.Job.FAILED, "its node is gone")
    await plane.replica_in(5, STATES.STARTING)  # it had served: this one is nobody's crash loop


async def test_the_service_goes_on_through_a_restart_of_the_autoscaler(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(1, 2, tokens_per_second=10)
    router = Router(plane, "router")
    await plane.ready(1)
    await router.routes(1)
    await plane.stop_autoscaler()
    await router.report(requests_total=1000, tokens_total=100_000)
    await plane.start_autoscaler()
    await until(lambda: _is(len(router.versions) >= 2 and router.versions == sorted(router.versions)))
    await router.routes(1)

    async def reconnected() -> bool:
        return (await plane.replicas())[1].HasField("running_requests")

    await until(reconnected)
    assert [one.state for one in (await plane.replicas()).values()] == [STATES.READY]
    # What a router counted before is no demand of now.
    for _ in range(3):
        await router.report(requests_total=1000, tokens_total=100_000)
        await plane.passes()
    assert (await plane.get()).desired_replicas == 1


async def test_a_drain_waits_for_routers_that_a_restart_has_cut_off(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(1, 1)
    replica = await plane.ready(1)
    plane.clock.advance(21)
    await replica.load(running_requests=1)
    await plane.call("DeleteInferenceService", pb.DeleteInferenceServiceRequest(name=SERVICE))
    await replica.draining.wait()
    await plane.restart_autoscaler()
    await replica.load()
    await plane.passes()
    assert await plane.job_states() == {"chat-r1": "STARTING"}
    plane.clock.advance(21)

    async def cancelled() -> bool:
        return await plane.job_states() == {"chat-r1": "CANCELLED"}

    await until(cancelled)


async def test_a_deleted_service_is_gone_when_its_last_replica_is_and_numbers_are_not_used_again(plane: Plane) -> None:
    await plane.agent("a")
    await plane.create(2, 2)
    await plane.replica_in(2, STATES.STARTING)
    deleted = await plane.call("DeleteInferenceService", pb.DeleteInferenceServiceRequest(name=SERVICE))
    assert (deleted.deleting, deleted.desired_replicas) == (True, 0)

    async def gone() -> bool:
        listed = await plane.call("ListInferenceServices", pb.ListInferenceServicesRequest())
        return not listed.inference_services

    await until(gone)
    assert set((await plane.job_states()).values()) == {"CANCELLED"}
    assert plane.metric("desired_replicas") is None
    await plane.create(1, 1)
    await plane.replica_in(3, STATES.STARTING)
