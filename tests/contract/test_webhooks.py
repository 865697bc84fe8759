"""Faults told to a real HTTP receiver and to the real Alertmanager, over restarts of the collector and of the receiver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from health_plane import WITHIN_S, Plane, collector
from prometheus_stack import Alertmanager
from sqlalchemy import text

from switchgear.collector.config import CollectorConfig
from switchgear.collector.webhooks import store
from switchgear.collector.webhooks.alerts import Alert
from switchgear.core.clock import ManualClock, SystemClock
from switchgear.store.database import Database
from switchgear.v1alpha import health_service_pb2 as pb


class Receiver:
    """What a webhook posts to. status: what it answers with; messages: those that it answered with 200, oldest first.

    unloved: nodes of which it takes nothing. location: where it sends on to.
    """

    def __init__(self) -> None:
        self.status = 200
        self.unloved = set[str]()
        self.location = ""
        self.headers = dict[str, str]()
        self.messages = asyncio.Queue[dict[str, Any]]()
        self.refused = asyncio.Event()
        self.url = ""

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.messages.get(), WITHIN_S)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = head.decode().split("\r\n")[1:-2]
                headers = dict(line.lower().split(": ", 1) for line in fields)
                body = await reader.readexactly(int(headers["content-length"]))
                message = json.loads(body)
                status = 500 if message["groupLabels"]["node"] in self.unloved else self.status
                if status == 200:
                    self.headers = headers
                    self.messages.put_nowait(message)
                else:
                    self.refused.set()
                location = f"Location: {self.location}\r\n" if self.location else ""
                writer.write(f"HTTP/1.1 {status} said\r\n{location}Content-Length: 0\r\n\r\n".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    yield receiver
    server.close()


def told_to(url: str, **settings: Any) -> CollectorConfig:
    hook = {"name": "pager", "url": url, "group_wait_s": 0, **settings}
    return CollectorConfig.model_validate({"webhook": [hook]})


def posts(plane: Plane, outcome: str) -> float | None:
    return plane.registry.get_sample_value("switchgear_webhook_posts_total", {"webhook": "pager", "outcome": outcome})


def open_gpus(message: dict[str, Any]) -> set[str]:
    return {alert["labels"]["gpu"] for alert in message["alerts"] if alert["status"] == "firing"}


async def clear(plane: Plane, gpu: int | None = None) -> None:
    await plane.health.ClearNodeHealth(pb.ClearNodeHealthRequest(name="nodes/gpu-01/health", gpu=gpu, reason="mended"))


async def test_a_message_is_as_alertmanager_writes_it(
    sqlite_database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(receiver.url + "\n")
    (tmp_path / "token").write_text("secret\n")
    config = told_to(
        "",
        url_file=tmp_path / "url",
        bearer_token_file=tmp_path / "token",
        headers={"X-Team": "gpu"},
        external_url="https://switchgear.example",
    )
    async with collector(sqlite_database, ManualClock(), config) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 79, gpu=3, text="Xid 79, fallen off the bus", simulated=True)
        firing = await receiver.next()
        (alert,) = firing.pop("alerts")
        labels = {
            "alertname": "GpuFault", "node": "gpu-01", "gpu": "3", "kind": "GPU_LOST", "code": "79", "severity": "critical",
            "simulated": "true",
        }  # fmt: skip
        annotations = {
            "summary": "GPU_LOST 79 on GPU 3 of gpu-01",
            "description": "GPU has fallen off the bus; Xid 79, fallen off the bus",
            "action": "RESTART_BM",
            "runbook": "docs/runbook.md#gpufault",
        }
        assert firing == {
            "version": "4",
            "groupKey": '{}:{node="gpu-01"}',
            "truncatedAlerts": 0,
            "status": "firing",
            "receiver": "pager",
            "groupLabels": {"node": "gpu-01"},
            "commonLabels": labels,
            "commonAnnotations": annotations,
            "externalURL": "https://switchgear.example",
        }
        fingerprint = alert.pop("fingerprint")
        assert alert == {
            "status": "firing",
            "labels": labels,
            "annotations": annotations,
            "startsAt": "2023-11-14T22:13:20.000000Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "https://switchgear.example/v1alpha/nodes/gpu-01/health",
        }
        assert (receiver.headers["authorization"], receiver.headers["x-team"]) == ("bearer secret", "gpu")
        await clear(plane)
        resolved = await receiver.next()
        assert (resolved["status"], resolved["alerts"][0]["status"]) == ("resolved", "resolved")
        assert resolved["alerts"][0]["fingerprint"] == fingerprint
        assert resolved["alerts"][0]["endsAt"].startswith("2023-11-14T22:13:20")
        assert posts(plane, "sent")


async def test_what_was_told_is_not_told_again_after_a_restart_and_what_was_not_is(
    database: Database, receiver: Receiver
) -> None:
    clock = ManualClock()
    async with collector(database, clock, told_to(receiver.url)) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 79, gpu=0)
        assert len((await receiver.next())["alerts"]) == 1
        await stored(database, {"0"})
    receiver.status = 503
    async with collector(database, clock, told_to(receiver.url)) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 79, gpu=1, source="driver")
        await asyncio.wait_for(receiver.refused.wait(), WITHIN_S)
    receiver.status = 200
    async with collector(database, clock, told_to(receiver.url)) as plane:
        first = await receiver.next()
        assert sorted(alert["labels"]["gpu"] for alert in first["alerts"]) == ["0", "1"]
        await clear(plane)
        assert {alert["status"] for alert in (await receiver.next())["alerts"]} == {"resolved"}
        await stored(database, set())
    async with collector(database, clock, told_to(receiver.url)) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 48, gpu=2, source="nvml")
        assert [alert["labels"]["gpu"] for alert in (await receiver.next())["alerts"]] == ["2"]


async def stored(database: Database, gpus: set[str]) -> None:
    """Waits until it is noted that these were told; a collector that ends before tells them again, and may."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            async with database.read() as session:
                told = await store.told(session, "pager")
            if {alert.labels["gpu"] for _, alerts, _ in told for alert in alerts} == gpus:
                return
            await asyncio.sleep(0.02)


async def test_a_receiver_that_is_away_gets_how_things_are_when_it_is_back(
    sqlite_database: Database, receiver: Receiver
) -> None:
    receiver.status = 503
    async with collector(sqlite_database, ManualClock(), told_to(receiver.url)) as plane:
        agent = await plane.agent()
        for gpu in range(3):
            await agent.tell("XID", 79, gpu=gpu)
        await asyncio.wait_for(receiver.refused.wait(), WITHIN_S)
        await clear(plane, gpu=1)
        receiver.status = 200
        while open_gpus(message := await receiver.next()) != {"0", "2"}:
            assert open_gpus(message) == {"0", "1", "2"}  # it was quicker than the news
        assert posts(plane, "retried")
        receiver.status = 404
        receiver.refused.clear()
        await clear(plane)
        await asyncio.wait_for(receiver.refused.wait(), WITHIN_S)
        receiver.status = 200
        await agent.tell("XID", 48, gpu=5)
        alerts = (await receiver.next())["alerts"]
        assert sorted((alert["labels"]["gpu"], alert["status"]) for alert in alerts) == [
            ("0", "resolved"),
            ("2", "resolved"),
            ("5", "firing"),
        ]
        assert posts(plane, "refused") == 1


async def test_messages_that_the_receiver_never_takes_hold_no_others_up(
    sqlite_database: Database, receiver: Receiver
) -> None:
    receiver.unloved = {"gpu-00", "gpu-01"}
    async with collector(sqlite_database, ManualClock(), told_to(receiver.url, connections=2)) as plane:
        for node in ("gpu-00", "gpu-01", "gpu-02"):
            agent = await plane.agent(node)
            await agent.tell("XID", 79, gpu=0)
        assert (await receiver.next())["groupLabels"] == {"node": "gpu-02"}


async def test_the_url_of_a_file_is_in_no_log(
    sqlite_database: Database, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "url").write_text(f"{receiver.url}/tell-nobody")
    caplog.set_level("DEBUG", "switchgear")
    caplog.set_level("WARNING", "httpx")  # as `core.log` has it
    receiver.status, receiver.location = 301, f"{receiver.url}/tell-nobody/"
    async with collector(sqlite_database, ManualClock(), told_to("", url_file=tmp_path / "url")) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 79, gpu=0)
        async with asyncio.timeout(WITHIN_S):
            while not posts(plane, "refused"):  # noqa: ASYNC110 - a metric has no event
                await asyncio.sleep(0.02)
    assert "refused a message: 301" in caplog.text
    assert "tell-nobody" not in caplog.text


async def test_a_database_that_is_set_back_is_followed_from_its_beginning(
    sqlite_database: Database, receiver: Receiver
) -> None:
    async with collector(sqlite_database, ManualClock(), told_to(receiver.url)) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 79, gpu=0)
        assert open_gpus(await receiver.next()) == {"0"}
        async with sqlite_database.write() as session:
            await session.execute(text("UPDATE revisions SET value = 0 WHERE service = 'collector-health'"))
        await agent.tell("XID", 79, gpu=1)
        assert open_gpus(await receiver.next()) == {"0", "1"}


async def test_what_receivers_of_other_collectors_were_told_is_kept(database: Database) -> None:
    async with database.write() as session:
        for webhook in ("mine", "gone"):
            for node in ("nodes/own", "nodes/other"):
                await store.save(session, webhook, [(node, [Alert({"node": node}, {}, 0)])], 0)
    async with database.write() as session:
        await store.keep_only(session, ["mine"], lambda node: node == "nodes/own")
    async with database.read() as session:
        left = [(name, row[0]) for name in ("mine", "gone") for row in await store.told(session, name)]
    assert sorted(left) == [("gone", "nodes/other"), ("mine", "nodes/other"), ("mine", "nodes/own")]


async def test_only_what_is_grave_enough_is_told_and_the_rest_of_many_is_counted(
    sqlite_database: Database, receiver: Receiver
) -> None:
    clock = ManualClock()
    config = told_to(receiver.url, severity_min="fatal", send_resolved=False, alerts_max=2, group_wait_s=5)
    async with collector(sqlite_database, clock, config) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 31, gpu=7)
        for gpu in range(5):
            await agent.tell("XID", 79, gpu=gpu)
        await asyncio.sleep(0.3)
        assert receiver.messages.empty()
        clock.advance(5)
        message = await receiver.next()
        assert (len(message["alerts"]), message["truncatedAlerts"]) == (2, 3)
        await clear(plane)
        await agent.tell("XID", 48, gpu=6)
        await plane.until(lambda one: len(one.conditions) == 1)
        await asyncio.sleep(0.1)
        clock.advance(5)
        message = await receiver.next()
        assert [alert["labels"]["code"] for alert in message["alerts"]] == ["48"]


async def test_alertmanager_has_what_is_open_and_drops_what_is_over(sqlite_database: Database, tmp_path: Path) -> None:
    routes = {"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}
    alertmanager = await asyncio.to_thread(Alertmanager, tmp_path, routes)
    try:
        url = f"http://{alertmanager.address}/api/v2/alerts"
        config = told_to(url, format="alertmanager", external_url="http://127.0.0.1:7071")
        async with collector(sqlite_database, SystemClock(), config) as plane, shown(url) as alerts:
            agent = await plane.agent()
            await agent.tell("XID", 79, gpu=0)
            await agent.tell("XID", 31, gpu=1)
            found = await alerts(lambda found: len(found) == 2)
            assert {(one["labels"]["gpu"], one["labels"]["severity"]) for one in found} == {
                ("0", "critical"),
                ("1", "warning"),
            }
            await clear(plane, gpu=0)
            (left,) = await alerts(lambda found: len(found) == 1)
            assert left["labels"]["gpu"] == "1"
            assert left["generatorURL"] == "http://127.0.0.1:7071/v1alpha/nodes/gpu-01/health"
            assert left["endsAt"] > left["updatedAt"]
            assert posts(plane, "refused") == 0
    finally:
        alertmanager.close()


Shown = Callable[[Callable[[list[dict[str, Any]]], bool]], Any]


@asynccontextmanager
async def shown(url: str) -> AsyncIterator[Shown]:
    """What Alertmanager has, once it is as wanted."""
    async with httpx.AsyncClient(trust_env=False) as client:

        async def alerts(is_so: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
            async with asyncio.timeout(WITHIN_S):
                while not is_so(found := (await client.get(url)).json()):  # noqa: ASYNC110 - HTTP has no event
                    await asyncio.sleep(0.05)
            return found

        yield alerts
