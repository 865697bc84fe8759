"""A service whose replicas are replaced, over real gRPC: with a GPU to spare, without one, and in a queue that is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from autoscaler_plane import SERVICE, Plane, Replica, Router, running
from recovery_plane import refusal
from scheduler_plane import until

from switchgear.cli import exits
from switchgear.cli.main import main
from switchgear.core.errors import Reason
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import planner_service_pb2 as planner_pb
from switchgear.v1alpha.planner_service_pb2_grpc import PlannerServiceStub

STATES = pb.Replica


@pytest.fixture
async def plane(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(sqlite_database, tmp_path) as plane:
        yield plane


async def update(plane: Plane, *argv: str, **fields: str) -> pb.InferenceService:
    spec = (await plane.get()).spec
    spec.argv[:] = argv or spec.argv
    updated: pb.InferenceService = await plane.call(
        "UpdateInferenceService", pb.UpdateInferenceServiceRequest(name=SERVICE, spec=spec, **fields)
    )
    return updated


async def waits_for(plane: Plane, number: int, cause: str) -> None:
    """Returns once the scheduler says so of the replica's job."""

    async def told() -> bool:
        listed = await plane.jobs.ListJobs(job_pb.ListJobsRequest())
        return any(job.name == f"jobs/chat-r{number}" and job.wait_cause == cause for job in listed.jobs)

    await until(told)


async def two_that_answer(plane: Plane, **spec: float) -> tuple[Router, Replica, Replica]:
    await plane.create(2, 2, **spec)
    router = Router(plane, "router")
    first, second = await plane.ready(1), await plane.ready(2)
    await router.routes(1, 2)
    await router.report(replicas={first.name: 2, second.name: 1})
    plane.clock.advance(21)  # routers have had the time to connect
    return router, first, second


async def test_a_new_replica_answers_before_an_old_one_drains(plane: Plane) -> None:
    await plane.agent("a", gpus=3)
    router, first, second = await two_that_answer(plane)
    await second.load(running_requests=1)
    await first.load(running_requests=2)
    updated = await update(plane, "serve.py", "--batch", "8")
    assert list(updated.spec.argv) == ["serve.py", "--batch", "8"]
    third = await plane.ready(3)
    assert list((await plane.job(3)).spec.argv) == ["serve.py", "--batch", "8"]
    await plane.replica_in(2, STATES.DRAINING)  # fewer requests are in it
    await router.routes(1, 3, draining=[2])
    await router.report(replicas={first.name: 2, second.name: 1})
    await plane.passes()
    # What it has is finished, and nothing else begins meanwhile.
    assert {number: one.state for number, one in (await plane.replicas()).items()} == {
        1: STATES.READY, 2: STATES.DRAINING, 3: STATES.READY, 4: STATES.REQUESTED,
    }  # fmt: skip
    await second.load()
    await router.report(replicas={first.name: 2, third.name: 1})
    await plane.replica_in(2, STATES.STOPPED)
    await plane.ready(4)
    await router.routes(3, 4, draining=[1])
    await first.load()
    await router.report()
    await plane.replica_in(1, STATES.STOPPED)
    service = await plane.get()
    assert (service.ready_replicas, service.outdated_replicas, list(service.standoffs)) == (2, 0, [])


async def test_without_a_gpu_to_spare_the_standoff_is_named_and_then_broken(
    plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    await plane.agent("a", gpus=2)
    router, _, second = await two_that_answer(plane)
    await update(plane, "other.py")
    await plane.replica_in(3, STATES.REQUESTED)
    await waits_for(plane, 3, "GPUS")
    assert not (await plane.get()).standoffs
    plane.clock.advance(16)
    service = await plane.says("what is to be replaced (2 left) waits until it answers")
    (standoff,) = service.standoffs
    assert (standoff.kind, standoff.remedy) == (
        pb.Standoff.SURGE,
        "make room for 1 GPU more while the update lasts",
    )
    labels = {"service": "chat", "kind": "SURGE"}
    assert plane.registry.get_sample_value("switchgear_autoscaler_standoff", labels) == 1
    await asyncio.to_thread(main, ["services", "--server", plane.address, "chat"])
    shown = capsys.readouterr().out
    assert "remedy: make room for 1 GPU more" in shown
    assert "update: 2 replicas are still to be replaced" in shown
    plane.clock.advance(15)
    await plane.replica_in(2, STATES.DRAINING)
    await router.routes(1, draining=[2])
    await second.load()
    await router.report()
    await plane.ready(3)
    assert not (await plane.get()).standoffs
    assert plane.registry.get_sample_value("switchgear_autoscaler_standoff", labels) == 0


async def test_a_quota_that_is_used_up_is_named_with_who_has_it(plane: Plane) -> None:
    planner = PlannerServiceStub(plane.channel)  # type: ignore[no-untyped-call]
    queue = planner_pb.Queue(name="queues/inference", limit_gpus=1)
    await planner.CreateQueue(planner_pb.CreateQueueRequest(queue=queue))
    await plane.agent("a", gpus=4)
    await plane.create(2, 2, queue="queues/inference", priority=10)  # type: ignore[arg-type]
    await plane.ready(1)
    assert (await plane.job(1)).spec.queue == "queues/inference"
    await plane.replica_in(2, STATES.REQUESTED)
    await waits_for(plane, 2, "QUOTA")
    plane.clock.advance(16)
    service = await plane.says("(of its services chat has 1)")
    assert service.standoffs[0].kind == pb.Standoff.QUOTA
    assert "switchgear queues set inference --limit N" in service.standoffs[0].remedy


async def test_an_update_that_changes_no_replica_replaces_none(plane: Plane) -> None:
    await plane.agent("a")
    service = await plane.create(1, 2)
    await plane.ready(1)
    assert (await update(plane)).etag == service.etag
    spec = service.spec
    spec.gpu_budget = 2
    changed = await plane.call("UpdateInferenceService", pb.UpdateInferenceServiceRequest(name=SERVICE, spec=spec))
    assert (changed.spec.gpu_budget, changed.outdated_replicas) == (2, 0)
    await plane.passes()
    assert sorted(await plane.replicas()) == [1]
    spec.gpu_budget = 1
    spec.min_replicas = 5  # is not looked at
    assert (await update(plane, etag=changed.etag)).spec.min_replicas == 1
    assert (await refusal(update(plane, etag="x"))).reason is Reason.ETAG_MISMATCH
    spec.priority = 1001
    wrong = plane.call("UpdateInferenceService", pb.UpdateInferenceServiceRequest(name=SERVICE, spec=spec))
    assert "spec.priority must be -1000 to 1000" in (await refusal(wrong)).message
    spec.priority, spec.queue = 0, "inference"
    wrong = plane.call("UpdateInferenceService", pb.UpdateInferenceServiceRequest(name=SERVICE, spec=spec))
    assert (await refusal(wrong)).reason is Reason.BAD_NAME


async def test_the_command_changes_what_is_given_and_nothing_else(
    plane: Plane, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.py").touch()
    before = (await plane.create(0, 2, drain_timeout_seconds=30)).spec

    async def services(*words: str) -> str:
        await asyncio.to_thread(main, ["services", "--server", plane.address, *words])
        return capsys.readouterr().out

    await services("update", "chat", "--priority", "7", "--queue", "a", "--env", "C=3", "--", "new.py", "--x")
    after = (await plane.get()).spec
    assert (list(after.argv), after.priority, after.queue) == (["new.py", "--x"], 7, "queues/a")
    assert (dict(after.environment), after.working_directory) == ({"A": "1", "C": "3"}, str(tmp_path))
    assert (after.drain_timeout_seconds, after.max_replicas, after.slo) == (30, 2, before.slo)
    assert "queue: a, priority 7" in await services("chat")


async def test_what_the_policy_goes_by_is_changed_and_taken_back_without_a_new_replica(
    plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    await plane.agent("a")
    before = (await plane.create(1, 2, cold_start_seconds=30)).spec
    await plane.ready(1)

    async def services(*words: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["services", "--server", plane.address, "update", "chat", *words])
        return code, capsys.readouterr().err

    def of(spec: pb.InferenceServiceSpec) -> tuple[float, float]:
        return spec.cold_start_seconds, spec.scale_down_delay_seconds

    await services("--scale-down-delay", "300")
    assert of((await plane.get()).spec) == (30, 300)
    await services("--cold-start", "12.5")
    assert of((await plane.get()).spec) == (12.5, 300)
    for wrong in ("-1", "nan", "inf", "604801"):
        code, told = await services("--cold-start", wrong)
        assert code == exits.USAGE
        assert "spec.cold_start_seconds must be above 0 and at most 604800, or 0 for not set" in told
    assert of((await plane.get()).spec) == (12.5, 300)
    await services("--cold-start", "0", "--scale-down-delay", "0")
    before.cold_start_seconds = 0
    after = await plane.get()
    assert (after.spec, after.outdated_replicas) == (before, 0)
