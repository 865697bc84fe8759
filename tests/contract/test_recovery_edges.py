"""Launchers, people and databases that do it wrong: each is answered, and recovery and its other jobs go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from recovery_plane import Launcher, World, refusal, running, until
from sqlalchemy import text

from switchgear.core.errors import Reason
from switchgear.recovery.launchers import COMMANDS_MAX, LAUNCHER_ID_LENGTH_MAX
from switchgear.recovery.machine import LEASE_S
from switchgear.store.database import Database
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1.recovery_service_pb2_grpc import RecoveryServiceStub
from switchgear.v1alpha import launcher_service_pb2 as wire
from switchgear.v1alpha.launcher_service_pb2_grpc import LauncherServiceStub
from switchgear.v1alpha.node_agent_service_pb2 import StartLauncher

JOB = "jobs/llama"
BAD_TOKEN = "x"  # noqa: S105 - a page's, no secret


@pytest.fixture
async def world(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    """On SQLite alone: what is told here does not reach a table, or does so elsewhere on both."""
    async with running(sqlite_database, tmp_path) as world:
        yield world


async def running_job(world: World, job_id: str = "llama", node: str = "a", **options: Any) -> Launcher:
    agent = await world.agent(node)
    await world.create(job_id)
    launcher = await world.launcher(agent, f"jobs/{job_id}", **options)
    await launcher.has("start", 1)
    return launcher


def hello(**fields: Any) -> wire.LauncherReport:
    defaults: dict[str, Any] = {
        "job": JOB,
        "node": "nodes/a",
        "launcher_id": "x",
        "placement_epoch": 1,
        "all_gone": True,
    }
    return wire.LauncherReport(hello=wire.LauncherHello(**(defaults | fields)))


@pytest.mark.parametrize(
    ("report", "code", "reason"),
    [
        (wire.LauncherReport(heartbeat=wire.Heartbeat()), "INVALID_ARGUMENT", Reason.STREAM_PROTOCOL),
        (hello(launcher_id=""), "INVALID_ARGUMENT", Reason.STREAM_PROTOCOL),
        (hello(launcher_id="x" * (LAUNCHER_ID_LENGTH_MAX + 1)), "INVALID_ARGUMENT", Reason.STREAM_PROTOCOL),
        (hello(job="llama"), "INVALID_ARGUMENT", Reason.BAD_NAME),
        (hello(node="nodes/a/gpus/1"), "INVALID_ARGUMENT", Reason.BAD_NAME),
        (hello(), "UNAVAILABLE", Reason.NOT_FOUND),
    ],
)
async def test_a_stream_that_does_not_begin_with_the_hello_of_a_known_job_is_refused(
    world: World, report: wire.LauncherReport, code: str, reason: Reason
) -> None:
    async with grpc.aio.insecure_channel(world.recovery_address) as channel:
        stream: Any = LauncherServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
        await stream.write(report)
        error = await refusal(stream.read())
    assert (error.code, error.reason) == (code, reason)


async def test_a_report_that_means_nothing_ends_its_stream_with_the_reason(world: World) -> None:
    launcher = await running_job(world)
    async with grpc.aio.insecure_channel(world.recovery_address) as channel:
        stream: Any = LauncherServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
        await stream.write(launcher.hello())
        await stream.write(wire.LauncherReport(generation=1, checkpoint=wire.CheckpointReport(path="/x")))
        while (error := await reads(stream)) is None:
            pass
    assert (error.code, error.reason, error.metadata["field"]) == (
        "INVALID_ARGUMENT",
        Reason.BAD_FIELD,
        "checkpoint.state",
    )
    # What it says on the stream that the other one has ended would be lost.
    await until(lambda: launcher.connections > 1)
    await launcher.step(1)
    await world.job(JOB, job_pb.Job.RUNNING)


async def reads(stream: Any) -> Any:
    """None for a command, and what the stream was ended with."""
    try:
        assert await stream.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        return await refusal(stream.read())
    return None


async def test_of_two_streams_of_one_node_the_newer_counts(world: World) -> None:
    launcher = await running_job(world)
    async with grpc.aio.insecure_channel(world.recovery_address) as channel:
        newer: Any = LauncherServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
        before = launcher.connections
        await newer.write(launcher.hello())
        await until(lambda: launcher.connections == before + 1)  # it was closed, and came again: now it is the newer
        while await newer.read() is not grpc.aio.EOF:
            pass
    await launcher.beat()
    assert await launcher.lease() == 1


async def test_a_node_cannot_end_a_job_in_the_name_of_the_ranks_of_another(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    agents = [await world.agent(name) for name in "ab"]
    await world.create("llama", nnodes=2)
    launchers = [await world.launcher(agent, JOB) for agent in agents]
    for launcher in launchers:
        await launcher.has("start", 1)
    honest, liar = launchers
    for rank in honest.alive:
        await liar.report(loaded=wire.Loaded(rank=rank, path="/w/1.pt"))
        await liar.report(rank_exited=wire.RankExited(rank=rank, exit_code=0))
    for rank in list(liar.alive):
        await liar.exit(rank, 0)
    await liar.heard()
    await honest.exit(0, -9)
    await honest.has("start", 2)
    assert caplog.text.count("which nodes/a has, are ignored") == 1


async def test_a_heartbeat_is_answered_with_a_lease_while_the_launcher_has_its_place(world: World) -> None:
    launcher = await running_job(world)
    await launcher.beat()
    await launcher.beat()
    await until(lambda: len(launcher.told("lease")) == 2)
    leases = [command.lease for command in launcher.commands if command.HasField("lease")]
    assert [(lease.sequence, lease.duration_seconds) for lease in leases] == [(1, LEASE_S), (2, LEASE_S)]
    await world.jobs.CancelJob(job_pb.CancelJobRequest(name=JOB))
    await until(lambda: bool(launcher.finished))


async def test_a_launcher_of_an_ended_job_or_an_older_placement_is_sent_away(world: World) -> None:
    launcher = await running_job(world)
    start = StartLauncher(job=JOB, placement_epoch=0, spec=job_pb.JobSpec(nproc_per_node=2))
    stale = Launcher(world.recovery_address, start, "nodes/a")
    stranger = Launcher(world.recovery_address, StartLauncher(job=JOB, placement_epoch=1), "nodes/z")
    connections = launcher.connections
    for outsider in (stale, stranger):
        assert "no longer part" in (await outsider.connect_once()).finish.reason
    await launcher.beat()
    assert (await launcher.lease(), launcher.connections, launcher.finished) == (1, connections, "")
    await world.jobs.CancelJob(job_pb.CancelJobRequest(name=JOB))
    await until(lambda: bool(launcher.finished))
    await world.restart_recovery()
    launcher.address = world.recovery_address
    assert (await launcher.connect_once()).finish.reason == "the job has ended"


async def test_a_launcher_that_does_not_read_is_cut_off_and_may_come_back(world: World) -> None:
    launcher = await running_job(world)
    small_window = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    beats, read = 20 * COMMANDS_MAX, 0
    async with grpc.aio.insecure_channel(world.recovery_address, options=small_window) as channel:
        deaf: Any = LauncherServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
        launcher.job = "jobs/other"  # the real one stays away: unknown jobs are refused
        await deaf.write(hello(launcher_id=launcher.launcher_id))
        for number in range(beats):
            await deaf.write(wire.LauncherReport(generation=1, heartbeat=wire.Heartbeat(sequence=number)))
        while await deaf.read() is not grpc.aio.EOF:
            read += 1
        assert await deaf.code() == grpc.StatusCode.OK
    assert read < beats / 2
    launcher.job = JOB
    await launcher.heard()
    await launcher.step(1)
    await world.job(JOB, job_pb.Job.RUNNING)


async def test_unreadable_bytes_from_a_rank_do_not_stop_its_job(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as world:
        launcher = await running_job(world)
        await launcher.exit(0, 1, exception="Value\0Error", stderr_tail="x" * 5000 + "\0")
        await launcher.has("start", 2)
        (incident,) = await world.incidents(JOB)
        assert "Value\N{REPLACEMENT CHARACTER}Error" in incident.summary


async def test_a_database_that_is_away_for_a_while_ends_nothing(world: World) -> None:
    launcher = await running_job(world)
    await rename(world.database, "recovery_jobs", "away")
    await world.create("second")
    await launcher.step(1)
    agent = await world.agent("b")
    second = await world.launcher(agent, "jobs/second")
    await until(lambda: len(second.told("start")) == 0)
    await rename(world.database, "away", "recovery_jobs")
    await second.has("start", 1)
    await world.job(JOB, job_pb.Job.RUNNING)
    assert world.recovery_runs


async def rename(database: Database, old: str, new: str) -> None:
    async with database.write() as session:
        await session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


async def test_a_job_whose_stored_state_cannot_be_read_leaves_the_others_alone(world: World) -> None:
    launcher = await running_job(world)
    other = await running_job(world, "other", "b")
    await world.stop_recovery()
    async with world.database.write() as session:
        await session.execute(text("UPDATE recovery_jobs SET state = '{}' WHERE job = 'jobs/other'"))
    await world.start_recovery()
    await launcher.heard()
    await launcher.step(1)
    await world.job(JOB, job_pb.Job.RUNNING)
    error = await refusal(other.connect_once())
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", Reason.STATE_NEWER)
    assert "cancel the job" in error.message


async def test_a_name_that_the_scheduler_has_forgotten_may_be_used_by_a_new_job(world: World) -> None:
    launcher = await running_job(world)
    await launcher.step(1)
    await launcher.exit(0, -9)
    await launcher.has("start", 2)
    await launcher.step(2)
    for rank in (0, 1):
        await launcher.exit(rank, 0)
    await world.job(JOB, job_pb.Job.SUCCEEDED)
    await world.stop()
    async with world.database.write() as session:
        await session.execute(text("DELETE FROM jobs"))
    async with running(world.database, world.state_dir, start_s=60) as later:
        agent = await later.agent("a")
        await later.create("llama")
        progress = pb.GetJobProgressRequest(name=f"{JOB}/progress")

        async def new() -> bool:
            try:
                return bool((await later.call("GetJobProgress", progress)).generation == 0)
            except grpc.aio.AioRpcError:
                return False  # the old one is forgotten, the new one is not stored yet

        await until(new)
        again = await later.launcher(agent, JOB)
        await again.has("start", 1)
        assert await later.attempts(JOB) == [(1, pb.Attempt.STARTING)]
        assert await later.incidents(JOB) == []
        await again.step(1)
        await later.job(JOB, job_pb.Job.RUNNING)


async def test_what_does_not_exist_is_named(world: World) -> None:
    calls: list[tuple[str, Any, Reason]] = [
        ("GetIncident", pb.GetIncidentRequest(name="incidents/none-1"), Reason.NOT_FOUND),
        ("GetIncident", pb.GetIncidentRequest(name="none-1"), Reason.BAD_NAME),
        ("ListIncidents", pb.ListIncidentsRequest(job="llama"), Reason.BAD_NAME),
        ("ListIncidents", pb.ListIncidentsRequest(page_token=BAD_TOKEN), Reason.BAD_PAGE_TOKEN),
        ("ListIncidents", pb.ListIncidentsRequest(page_size=-1), Reason.BAD_FIELD),
        ("ListAttempts", pb.ListAttemptsRequest(parent=JOB), Reason.NOT_FOUND),
        ("ListCheckpoints", pb.ListCheckpointsRequest(parent=JOB), Reason.NOT_FOUND),
        ("ListCheckpoints", pb.ListCheckpointsRequest(parent=JOB, page_token=BAD_TOKEN), Reason.BAD_PAGE_TOKEN),
        ("GetJobProgress", pb.GetJobProgressRequest(name=f"{JOB}/progress"), Reason.NOT_FOUND),
        ("GetJobProgress", pb.GetJobProgressRequest(name=JOB), Reason.BAD_NAME),
    ]
    assert [(await refusal(world.call(method, request))).reason for method, request, _ in calls] == [
        reason for *_, reason in calls
    ]


async def test_a_watch_goes_on_after_the_revision_of_a_list(world: World) -> None:
    launcher = await running_job(world)
    await launcher.step(1)
    await launcher.exit(0, -9)
    await launcher.has("start", 2)
    listed = await world.call("ListIncidents", pb.ListIncidentsRequest(job=JOB))
    await world.restart_recovery()
    async with grpc.aio.insecure_channel(world.recovery_address) as channel:
        stub: Any = RecoveryServiceStub(channel)  # type: ignore[no-untyped-call]
        watch = stub.WatchIncidents(pb.WatchIncidentsRequest(revision=listed.revision))
        bookmark = await watch.read()
        assert (bookmark.HasField("incident"), bookmark.revision) == (False, listed.revision)
        await launcher.heard()
        await launcher.step(2)
        change = await watch.read()
        assert (change.incident.name, change.incident.state) == (listed.incidents[0].name, pb.Incident.RESOLVED)
        assert change.revision > listed.revision
        watch.cancel()
        error = await refusal(stub.WatchIncidents(pb.WatchIncidentsRequest(revision=10**6)).read())
        assert error.reason is Reason.REVISION_UNKNOWN
