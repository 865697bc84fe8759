"""Nodes' health over real gRPC and on both databases: from an agent's events to verdicts that end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from health_plane import WITHIN_S, collector
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.cli.main import main as command
from switchgear.collector import health_store
from switchgear.collector.config import CollectorConfig
from switchgear.collector.verdicts import Verdicts
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid, NotFound
from switchgear.core.service import Endpoints
from switchgear.gateway.main import build_app, serve
from switchgear.store.database import Database, sqlite_url
from switchgear.v1alpha import health_service_pb2 as pb


async def test_a_fatal_fault_stays_over_a_restart_of_the_collector_and_ends_with_a_boot(database: Database) -> None:
    clock = ManualClock()
    async with collector(database, clock) as plane:
        agent = await plane.agent()
        assert (await plane.until_verdict("HEALTHY")).conditions == []
        await agent.tell("XID", 79, gpu=3, text="Xid 79, fallen off the bus")
        failed = await plane.get()
        (open_,) = failed.conditions
        assert (failed.verdict, open_.kind, open_.code, open_.gpu) == (
            pb.NodeHealth.FAILED,
            "GPU_LOST",
            79,
            "nodes/gpu-01/gpus/3",
        )
        assert (open_.severity, open_.evidence) == (pb.Condition.FATAL, "Xid 79, fallen off the bus")
        assert "a boot of the node" in open_.ends
    clock.advance(7200)
    async with collector(database, clock) as plane:
        assert (await plane.get()) == failed
        await plane.agent(epoch="epoch-2")
        await plane.agent("gpu-02")
        await plane.until_verdict("HEALTHY", "gpu-02")
        assert (await plane.get()).verdict == pb.NodeHealth.FAILED  # the agent alone was started anew
        await plane.agent(boot="boot-2", epoch="epoch-2")
        assert "booted" in (await plane.until_verdict("HEALTHY")).change


async def test_an_application_fault_ends_by_itself(database: Database) -> None:
    clock = ManualClock()
    async with collector(database, clock) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 31, gpu=0)
        assert (await plane.get()).verdict == pb.NodeHealth.DEGRADED
        clock.advance(599)
        await agent.tell("XID", 31, gpu=0)
        assert [one.count for one in (await plane.get()).conditions] == [2]
        clock.advance(601)
        await plane.until_verdict("HEALTHY")


async def test_a_silent_node_is_heard_again(database: Database) -> None:
    clock = ManualClock()
    async with collector(database, clock) as plane:
        agent = await plane.agent()
        await plane.until_verdict("HEALTHY")
        agent.call.cancel()
        await asyncio.sleep(0.2)
        clock.advance(11)
        await plane.until_verdict("SILENT")
        await plane.agent()
        assert "heard again" in (await plane.until_verdict("HEALTHY")).change


async def test_an_operator_clears_one_gpu_and_is_named(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        agent = await plane.agent()
        for gpu in (0, 1):
            await agent.tell("XID", 48, gpu=gpu)
        request = pb.ClearNodeHealthRequest(
            name="nodes/gpu-01/health", gpu=1, reason="replaced", actor="user:ann", request_id="1"
        )
        cleared = await plane.health.ClearNodeHealth(request)
        assert [one.gpu for one in cleared.conditions] == ["nodes/gpu-01/gpus/0"]
        assert cleared.change == "XID 48 on GPU 1 ended: user:ann says: replaced"
        await agent.tell("XID", 48, gpu=1)
        assert await plane.health.ClearNodeHealth(request) == cleared  # the same request does nothing again
        assert len((await plane.get()).conditions) == 2
        for wrong, error in (
            (pb.ClearNodeHealthRequest(name="nodes/gpu-01/health", reason=" "), Invalid),
            (pb.ClearNodeHealthRequest(name="nodes/nobody/health", reason="x"), NotFound),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await plane.health.ClearNodeHealth(wrong)
            assert isinstance(rpc.from_rpc_error(caught.value), error)


async def test_nodes_are_listed_by_name_in_pages_and_by_verdict(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        nodes = [f"gpu-{number}" for number in range(5)]
        agents = [await plane.agent(node) for node in nodes]
        for agent in agents[:2]:
            await agent.tell("XID", 79, gpu=0)
        seen, token = list[str](), ""
        while not seen or token:
            page = await plane.health.ListNodeHealth(pb.ListNodeHealthRequest(page_size=2, page_token=token))
            seen += [one.name for one in page.nodes]
            token = page.next_page_token
        assert seen == [f"nodes/{node}/health" for node in nodes]
        failed = await plane.health.ListNodeHealth(pb.ListNodeHealthRequest(verdicts=["FAILED"]))
        assert [one.name for one in failed.nodes] == ["nodes/gpu-0/health", "nodes/gpu-1/health"]


async def test_a_person_lists_shows_and_clears(sqlite_database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    async with collector(sqlite_database, ManualClock()) as plane:

        async def run(*arguments: str) -> str:
            assert await asyncio.to_thread(command, ["health", *arguments, "--server", plane.address]) == 0
            return capsys.readouterr().out

        assert "no such nodes" in await run()
        agent = await plane.agent()
        await agent.tell("XID", 79, gpu=3, text="Xid 79, fallen off the bus", simulated=True)
        await plane.agent("gpu-02")
        await plane.until_verdict("HEALTHY", "gpu-02")
        listed = [line.split() for line in (await run()).splitlines()]
        assert [(line[0], line[1], line[3:]) for line in listed[1:]] == [
            ("gpu-01", "FAILED", ["1", "GPU_LOST", "79", "GPU", "3"]),
            ("gpu-02", "HEALTHY", ["0", "-"]),
        ]
        assert listed[1][2].startswith("2023-11-1"), "the day, which is not today"
        assert len((await run("--verdict", "failed")).splitlines()) == 2
        shown = await run("gpu-01")
        assert "Xid 79, fallen off the bus" in shown
        assert "ends by GPU_RECOVERY_ACTION, or GPU_RESET_ACK, or GPU_RETURNED, or a boot of the node" in shown
        cleared = await run("clear", "gpu-01", "--gpu", "3", "--reason", "GPU replaced")
        assert "HEALTHY" in cleared
        assert "says: GPU replaced" in cleared
        assert json.loads(await run("gpu-01", "--json"))["verdict"] == "HEALTHY"


async def test_a_person_watches_on_when_the_control_plane_comes_back(sqlite_database: Database) -> None:
    clock = ManualClock()
    async with collector(sqlite_database, clock) as plane:
        agent = await plane.agent()
        await plane.until_verdict("HEALTHY")
        arguments = ("health", "--watch", "--json", "--server", plane.address)
        watch = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "switchgear.cli.main", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert watch.stdout is not None
        assert watch.stderr is not None
        verdicts = [json.loads(await asyncio.wait_for(watch.stdout.readline(), WITHIN_S))["verdict"]]
    try:
        async with asyncio.timeout(WITHIN_S):
            while b"trying again" not in (
                line := await watch.stderr.readline()
            ):  # gRPC may write a line of its own first
                assert line, "it has ended"
        async with collector(sqlite_database, clock, address=plane.address) as plane:
            agent = await plane.agent()
            await agent.tell("XID", 79, gpu=3)
            verdicts.append(json.loads(await asyncio.wait_for(watch.stdout.readline(), WITHIN_S))["verdict"])
    finally:
        watch.kill()
        await watch.wait()
    assert verdicts == ["HEALTHY", "FAILED"]


async def test_watching_over_rest_goes_on_behind_the_last_event(sqlite_database: Database) -> None:
    async with (
        collector(sqlite_database, ManualClock()) as plane,
        serve(build_app(Endpoints.all_at(plane.address)), "127.0.0.1", 0) as http,
        httpx.AsyncClient(base_url=f"http://{http}/v1alpha", trust_env=False, timeout=WITHIN_S) as client,
    ):
        agent = await plane.agent()
        await plane.until_verdict("HEALTHY")
        async with client.stream("GET", "/nodeHealth:watch") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            last_id, first = await next_event(response)
        assert (first["health"]["verdict"], first["revision"]) == ("HEALTHY", last_id)
        await agent.tell("XID", 48, gpu=1)
        async with client.stream("GET", "/nodeHealth:watch", headers={"Last-Event-ID": last_id}) as response:
            _, second = await next_event(response)
        assert [one["code"] for one in second["health"]["conditions"]] == [48]
        refused = await client.get("/nodeHealth:watch", params={"revision": 1000})
        assert (refused.status_code, refused.json()["error"]["status"]) == (400, "OUT_OF_RANGE")
        cleared = await client.post("/nodes/gpu-01/health:clear", json={"reason": "reseated"})
        assert cleared.json()["verdict"] == "HEALTHY"


async def next_event(response: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Id and data of the next server-sent event."""
    last_id = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            last_id = value
        elif name == "data":
            return last_id, json.loads(value)
    raise AssertionError("the stream ended")


async def test_a_node_without_an_agent_is_judged_by_what_is_imported_of_it(sqlite_database: Database) -> None:
    clock = ManualClock()
    config = CollectorConfig.model_validate({"otlp_import": {"enabled": True}})
    async with collector(sqlite_database, clock, config) as plane:
        exporter: Any = MetricsServiceStub(plane.channel)

        async def export() -> None:
            point = otlp.NumberDataPoint(time_unix_nano=clock.unix_ns(), as_double=1.0)
            of_node = otlp.ResourceMetrics(
                scope_metrics=[
                    otlp.ScopeMetrics(metrics=[otlp.Metric(name="load", gauge=otlp.Gauge(data_points=[point]))])
                ]
            )
            of_node.resource.attributes.add(key="host.name").value.string_value = "gpu-01"
            await exporter.Export(ExportMetricsServiceRequest(resource_metrics=[of_node]))

        await export()
        await plane.until_verdict("HEALTHY")
        clock.advance(3600)
        assert [one.kind for one in (await plane.until_verdict("SILENT")).conditions] == ["NODE_SILENT"]
        await export()
        await plane.until_verdict("HEALTHY")


async def test_nodes_that_fall_silent_together_are_all_told(database: Database) -> None:
    clock = ManualClock()
    async with collector(database, clock) as plane:
        agents = [await plane.agent(f"gpu-{number}") for number in range(6)]
        for number, agent in enumerate(agents):
            await plane.until_verdict("HEALTHY", f"gpu-{number}")
            agent.call.cancel()
        await asyncio.sleep(0.2)
        clock.advance(11)
        for number in range(6):
            await plane.until_verdict("SILENT", f"gpu-{number}")


async def test_a_database_that_is_away_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(sqlite_url(tmp_path / "nowhere" / "state.db"))
    verdicts = Verdicts(database, ManualClock(), lambda _: True)
    verdicts.heard("nodes/n")
    running = asyncio.create_task(verdicts.run())
    await asyncio.sleep(0.3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await database.close()
    assert [one.name for one in caplog.records if one.levelname == "ERROR"] == ["switchgear.store.database"]


async def test_what_was_read_before_the_turn_came_is_read_again(database: Database) -> None:
    if not database.is_shared:
        pytest.skip("SQLite has one writer at a time")

    async def note(session: AsyncSession, text: str) -> None:
        await health_store.change(session, ["nodes/n"], lambda one: replace(one, change=one.change + text), 0)

    async with database.write() as session:
        await note(session, "a")
    async with database.write() as late:
        row = await late.get(health_store.HealthRow, "nodes/n")
        async with database.write() as session:
            await note(session, "b")
        await note(late, "c")
    async with database.read() as session:
        found = await health_store.health_of(session, "nodes/n")
    assert found is not None
    assert row is not None
    assert (found.change, row.change) == ("abc", "abc")


async def test_an_agent_with_a_long_epoch_is_the_same_when_it_comes_again(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        agent = await plane.agent(epoch="e" * 200)
        await agent.tell("SOURCE_STALLED", text="nvml did not answer", source="agent")
        assert (await plane.get()).verdict == pb.NodeHealth.DEGRADED
        await plane.agent(epoch="e" * 200)
        await plane.agent("gpu-02")
        await plane.until_verdict("HEALTHY", "gpu-02")
        assert (await plane.get()).verdict == pb.NodeHealth.DEGRADED
