"""A job from its first launcher to its end over real gRPC and on both databases, also when recovery is stopped on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from recovery_plane import NOWHERE, Launcher, World, refusal, running, until
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.recovery import store
from switchgear.recovery.model import JobState
from switchgear.recovery.store import move_signal_cursor, signal_cursor
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
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


async def test_recovery_may_be_stopped_anywhere_and_the_flow_goes_on_with_each_generation_once(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama", checkpoints=True)
    launcher = await world.launcher(agent, JOB, hold=["verify", "start", "stop"])

    async def restart_before(kind: str, generation: int) -> None:
        """The command came and was not carried out; the next recovery gives it again."""
        await launcher.has(kind, generation)
        await world.stop_recovery()
        launcher.held.discard(kind)
        launcher.commands.clear()
        await world.start_recovery()
        await launcher.has(kind, generation)
        launcher.held.add(kind)

    await restart_before("verify", 0)
    await restart_before("start", 1)
    await until(lambda: len(launcher.alive) == 2)
    await launcher.step(7)
    await world.job(JOB, RUNNING)
    await world.restart_recovery()
    await launcher.exit(1, -9)
    launcher.checkpoints = [checkpoint(5)]
    await restart_before("stop", 1)
    await restart_before("verify", 1)
    await restart_before("start", 2)
    await until(lambda: len(launcher.alive) == 2)
    await world.restart_recovery()
    await launcher.heard()
    await launcher.step(8)
    incident = await world.incident(JOB, pb.Incident.RESOLVED)
    assert (incident.failed_generation, incident.new_generation, incident.failed_step) == (1, 2, 7)
    await world.restart_recovery()
    await succeed(launcher)
    await until(lambda: bool(launcher.finished))
    await world.job(JOB, SUCCEEDED)
    assert await world.attempts(JOB) == [(1, pb.Attempt.FAILED), (2, pb.Attempt.SUCCEEDED)]


async def test_what_happened_while_recovery_was_away_is_told_in_the_hello(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await launcher.step(3)
    await world.job(JOB, RUNNING)
    await world.stop_recovery()
    launcher.forget_reports = True
    await launcher.exit(0, 1, exception="ValueError: nan")
    await launcher.exit(1, -9, by_us=True)
    launcher.forget_reports = False
    await world.start_recovery()
    await launcher.has("start", 2)
    (incident,) = await world.incidents(JOB)
    assert (incident.fault, incident.rank) == ("RANK_EXCEPTION", 0)


async def test_calls_that_the_scheduler_has_not_heard_are_made_after_a_restart(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await launcher.step(1)
    await world.job(JOB, RUNNING)
    await world.restart_recovery(scheduler=NOWHERE)
    await succeed(launcher)
    await until(lambda: bool(launcher.finished))
    assert await world.attempts(JOB) == [(1, pb.Attempt.SUCCEEDED)]
    assert (await world.job(JOB, RUNNING)).state == RUNNING
    await world.restart_recovery()
    await world.job(JOB, SUCCEEDED)
    await world.restart_recovery()
    job = await world.job(JOB, SUCCEEDED)
    assert job.message == "all 2 ranks ended with exit code 0"


async def test_a_launcher_that_comes_while_the_first_state_of_its_job_is_stored_is_not_told_that_the_job_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, state_of = asyncio.Event(), store.state_of
    waits: list[asyncio.Task[object]] = []

    async def late(session: AsyncSession, job: str) -> JobState | None:
        if asyncio.current_task() in waits:
            looking.set()
            await until(lambda: world.service._live(JOB) is not None)
            await until(lambda: stored(world))
        return await state_of(session, job)

    monkeypatch.setattr(store, "state_of", late)
    waits.append(asyncio.create_task(world.service._find(JOB)))
    await looking.wait()
    await world.agent("a")
    await world.create("llama")
    assert await waits[0] is not None


async def stored(world: World) -> bool:
    async with world.database.read() as session:
        return bool(await store.running(session))


async def test_run_may_be_cancelled_and_started_again_while_the_server_stays(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await launcher.step(1)
    await world.job(JOB, RUNNING)
    await world.run_again()
    await launcher.exit(0, -9)
    await launcher.has("start", 2)
    await launcher.step(2)
    await world.incident(JOB, pb.Incident.RESOLVED)
    await succeed(launcher)
    await world.job(JOB, SUCCEEDED)


async def test_a_job_that_is_cancelled_while_recovery_is_away_is_finished(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await world.stop_recovery()
    await world.jobs.CancelJob(job_pb.CancelJobRequest(name=JOB))
    await world.start_recovery()
    await until(lambda: bool(launcher.finished))
    assert await world.attempts(JOB) == [(1, pb.Attempt.STOPPED)]
    assert launcher.finished == "cancelled by the user"


async def test_a_fatal_signal_cordons_the_node_and_moves_the_job_to_another(world: World) -> None:
    bad = await world.agent("a")
    await world.create("llama")
    old = await world.launcher(bad, JOB)
    await old.has("start", 1)
    await old.step(3)
    await world.job(JOB, RUNNING)
    spare = await world.agent("b")
    await bad.event(code=79, text="NVRM: Xid (PCI:0000:03:00): 79, GPU has fallen off the bus.")
    await old.has("stop", 1)
    launcher = await world.launcher(spare, JOB)
    await launcher.has("start", 2)
    node = await world.fleet.GetNode(fleet_pb.GetNodeRequest(name="nodes/a"))
    assert (node.state, node.actor) == (fleet_pb.Node.CORDONED, "policy:recovery")
    assert "GPU_LOST (simulated)" in node.reason
    assert "fallen off the bus" in node.reason
    await old.beat()
    await until(lambda: bool(old.finished))
    assert "no longer part of the job's placement" in old.finished
    assert [(stop.job, stop.placement_epoch) for stop in bad.stopped] == [(JOB, 1)]
    await launcher.step(4)
    incident = await world.incident(JOB, pb.Incident.RESOLVED)
    assert (incident.fault, incident.node, incident.decision) == ("GPU_LOST", "nodes/a", "REPLACE_NODE")
    placement = (await world.job(JOB, RUNNING)).placement
    assert [(placed.node, placed.launcher_epoch) for placed in placement.nodes] == [("nodes/b", 2)]


async def test_a_fatal_signal_of_an_idle_node_takes_it_out_of_placement(world: World) -> None:
    idle = await world.agent("a")
    await idle.event(code=79, text="NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus.")
    node = await world.node("nodes/a", fleet_pb.Node.CORDONED)
    assert node.actor == "policy:recovery"
    assert "GPU_LOST" in node.reason
    await world.create("j")
    assert (await world.job("jobs/j", job_pb.Job.PENDING)).placement.epoch == 0
    assert await world.incidents() == []


async def test_a_signal_is_dealt_with_once_also_when_it_comes_again_after_a_crash(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB, hold=["stop"])
    await launcher.has("start", 1)
    await agent.event(code=79, text="fallen off the bus")
    await launcher.has("stop", 1)
    cordoned = await world.node("nodes/a", fleet_pb.Node.CORDONED)
    await until(world.signals_read)
    await world.stop_recovery()
    async with world.database.write() as session:
        assert await signal_cursor(session) == 1
        await move_signal_cursor(session, 0)  # as if the crash had come between the state and the cursor
    await world.start_recovery()
    await until(world.signals_read)
    assert len(await world.incidents(JOB)) == 1
    assert await world.node("nodes/a", fleet_pb.Node.CORDONED) == cordoned


async def test_signals_that_were_pruned_or_begun_anew_do_not_stop_the_later_ones(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB, hold=["stop"])
    await launcher.has("start", 1)
    await world.stop_recovery()
    async with world.database.write() as session:
        await move_signal_cursor(session, 1000)
    await world.start_recovery()
    await until(world.signals_read)
    await agent.event(code=79, text="fallen off the bus")
    await launcher.has("stop", 1)


async def test_a_launcher_that_comes_before_the_news_of_its_placement_is_not_sent_away(world: World) -> None:
    bad = await world.agent("a")
    spare = await world.agent("b")
    await world.create("llama")
    old = await world.launcher(bad, JOB)
    await old.has("start", 1)
    await world.restart_recovery(scheduler=NOWHERE)
    await old.heard()  # by the new one; a count of connections may include one to the old one as it ended
    await world.replace(JOB, epoch=1, without=bad.node)
    launcher = await world.launcher(spare, JOB)
    assert (await refusal(launcher.connect_once())).code == "UNAVAILABLE"
    assert not launcher.finished


async def test_a_silent_node_is_given_up_after_its_lease(world: World) -> None:
    agent, spare = await world.agent("a"), await world.agent("b")
    await world.create("llama")
    silent = await world.launcher(agent, JOB)
    await silent.has("start", 1)
    await silent.step(1)
    await world.job(JOB, RUNNING)
    world.clock.advance(34)
    await silent.beat()
    assert await silent.lease() == 1
    world.clock.advance(34)
    await until(world.ticked)
    assert await world.incidents(JOB) == []
    world.clock.advance(2)
    launcher = await world.launcher(spare, JOB)
    assert (await launcher.has("start", 2)).start.restart_count == 1
    assert (await world.incidents(JOB))[0].fault == "NODE_LOST"
