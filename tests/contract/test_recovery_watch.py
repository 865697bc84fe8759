"""Ranks that make no step, and nodes whose connections end, over real gRPC and on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from recovery_plane import Agent, Launcher, World, ended, running, until

from switchgear.recovery.watching import GONE_S
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2 as wire

JOB = "jobs/llama"
SENT_NS = 10**18
PEER_LOST = "RuntimeError: [gloo/transport/tcp/pair.cc] Connection closed by peer"


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(database, tmp_path) as world:
        yield world


def watch(rank: int, activity: wire.RankWatch.Activity, idle_s: float, **fields: object) -> wire.RankWatch:
    return wire.RankWatch(
        rank=rank,
        process_state=wire.RankWatch.SLEEPING,
        activity=activity,
        progress_time_unix_ns=SENT_NS - round(idle_s * 1e9),
        step_seconds=0.5,
        **{"count": 7, **fields},  # type: ignore[arg-type]
    )


async def test_a_hung_rank_is_named_with_its_stack_and_the_job_starts_again(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await launcher.step(7)
    told = wire.Watch(
        ranks=[
            watch(0, wire.RankWatch.COLLECTIVE, 3.5, cpu_share=0.0),
            watch(
                1, wire.RankWatch.STEP, 3.5, cpu_share=0.0, where="train_step (train.py:9)", stack="main\ntrain_step"
            ),
        ]
    )
    await launcher.report(watch=told, time_unix_ns=SENT_NS)
    await launcher.has("start", 2)
    await launcher.step(8)
    incident = await world.incident(JOB, pb.Incident.RESOLVED)
    assert (incident.fault, incident.rank, incident.node) == ("RANK_HUNG", 1, "nodes/a")
    assert (incident.decision, incident.stack) == ("RESTART_IN_PLACE", "main\ntrain_step")
    assert "hung after step 7 in train_step (train.py:9)" in incident.summary


async def test_a_recovery_that_was_started_anew_knows_one_hang_from_another(world: World) -> None:
    """What a launcher has told of its steps it does not tell again: the watches say how far its ranks are."""
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)

    async def makes_steps(generation: int, to: int) -> None:
        async def stored() -> bool:
            return (generation, pb.Attempt.RUNNING) in await world.attempts(JOB)

        await launcher.has("start", generation)
        await launcher.report(progress=launcher.progress(7, new=generation == 1))
        await until(stored)
        await launcher.report(progress=launcher.progress(to, new=generation == 1))
        await launcher.heard()

    async def stands_still(count: int, idle_s: float) -> None:
        """In the eyes of a recovery that was started anew."""
        await world.restart_recovery()
        await launcher.heard()
        told = [
            watch(0, wire.RankWatch.COLLECTIVE, idle_s, cpu_share=0.0, count=count),
            watch(1, wire.RankWatch.STEP, idle_s, cpu_share=0.0, count=count),
        ]
        await launcher.report(watch=wire.Watch(ranks=told), time_unix_ns=SENT_NS)

    await makes_steps(1, 9)
    await stands_still(9, 3.5)
    await makes_steps(2, 8)
    await stands_still(8, 3.5)
    await makes_steps(3, 9)
    await stands_still(9, 29.0)
    await launcher.heard()
    await world.ticked()
    assert 3 not in launcher.told("stop")
    await stands_still(9, 31.0)
    await launcher.has("stop", 3)


async def test_a_launcher_of_a_newer_kind_may_say_what_we_do_not_know(world: World) -> None:
    agent = await world.agent("a")
    await world.create("llama")
    launcher = await world.launcher(agent, JOB)
    await launcher.has("start", 1)
    await launcher.step(7)
    unknown = wire.RankWatch(rank=1, process_state=99, activity=99)  # type: ignore[arg-type]
    await launcher.report(watch=wire.Watch(ranks=[unknown]), time_unix_ns=SENT_NS)
    await launcher.heard()
    assert await world.incidents(JOB) == []


async def test_a_node_whose_connections_end_is_replaced_while_its_lease_still_runs(world: World) -> None:
    a = await world.agent("a")
    b = Agent(world.channel, "b")
    node_b = asyncio.create_task(b.run())
    try:
        await until(lambda: _is_known(world, "nodes/b"))
        await world.create("llama", nnodes=2)
        on_a = await world.launcher(a, JOB)
        await until(lambda: JOB in b.started)
        on_b = Launcher(world.recovery_address, b.started[JOB], b.node)
        launcher_b = asyncio.create_task(on_b.run())
        spare = await world.agent("c")
        for launcher in (on_a, on_b):
            await launcher.has("start", 1)
            await launcher.step(7)
            await launcher.heard()
        await ended([launcher_b, node_b])
    finally:
        await ended([node_b])
    await on_a.exit(0, 1, exception=PEER_LOST, step=7)
    await on_a.exit(1, -9, by_us=True, step=7)
    await world.ticked()
    assert JOB not in spare.started
    world.clock.advance(GONE_S)
    on_spare = await world.launcher(spare, JOB)
    for launcher in (on_a, on_spare):
        await launcher.has("start", 2)
        await launcher.step(8)
    incident = await world.incident(JOB, pb.Incident.RESOLVED)
    assert (incident.fault, incident.node, incident.decision) == ("NODE_LOST", "nodes/b", "REPLACE_NODE")


async def _is_known(world: World, name: str) -> bool:
    return name in [node.name for node in (await world.fleet.ListNodes(fleet_pb.ListNodesRequest())).nodes]
