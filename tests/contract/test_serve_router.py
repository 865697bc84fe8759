"""The router between real HTTP clients and replicas, with a test in the autoscaler's place."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from serving_plane import SERVICE, Alphabet, ServingPlane, replica_name, serving_plane

from switchgear.access import pki
from switchgear.core.clock import SystemClock
from switchgear.serve import completions, http, proxy, router, router_link, upstream
from switchgear.serve.replica import ReplicaSettings, serving
from switchgear.serve.switchboard import Limits, Route, ServiceRoutes
from switchgear.v1alpha import serving_service_pb2 as pb

LIMITS = Limits(in_flight_per_replica=4, aside_s=0.05, held_requests=20)


@dataclass
class Stage:
    plane: ServingPlane
    client: httpx.AsyncClient
    registry: CollectorRegistry
    replicas: AsyncExitStack

    async def start(self, number: int, model: Alphabet) -> pb.ReplicaRoute:
        """A replica that has registered and is ready."""
        settings = ReplicaSettings(model="chat", replica=replica_name(number), autoscaler=self.plane.address, grace_s=1)
        await self.replicas.enter_async_context(serving(lambda: model, settings))
        return await self.plane.ready(number)

    async def ask(self, prompt: str = "a", **fields: object) -> httpx.Response:
        body = {"model": "chat", "prompt": prompt, "max_tokens": 3, **fields}
        return await self.client.post(completions.PATH, json=body)

    def asks(self, count: int) -> list[asyncio.Task[httpx.Response]]:
        return [asyncio.create_task(self.ask()) for _ in range(count)]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"switchgear_router_{name}", {"service": "chat", **labels})


@asynccontextmanager
async def staged(limits: Limits = LIMITS) -> AsyncIterator[Stage]:
    registry = CollectorRegistry()
    async with serving_plane() as plane, AsyncExitStack() as replicas:
        settings = router.RouterSettings(autoscaler=plane.address, listen="127.0.0.1:0", limits=limits, grace_s=1)
        async with (
            router.serve(settings, registry) as address,
            httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as client,
        ):
            yield Stage(plane, client, registry, replicas)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


def all_good(responses: list[httpx.Response]) -> bool:
    return [(r.status_code, r.json()["choices"][0]["text"]) for r in responses] == [(200, "bcd")] * len(responses)


def draining(route: pb.ReplicaRoute) -> pb.ReplicaRoute:
    return pb.ReplicaRoute(replica=route.replica, address=route.address, draining=True)


async def test_requests_wait_for_the_first_replica_and_the_autoscaler_hears_of_them_at_once(stage: Stage) -> None:
    await stage.plane.publish()
    asked = stage.asks(6)
    await stage.plane.until(lambda: stage.plane.demand().held_requests == 6)
    assert stage.plane.demand().held_tokens == 6 * 4
    assert stage.metric("held_requests") == 6
    await stage.plane.publish(await stage.start(1, Alphabet()))
    assert all_good(await asyncio.gather(*asked))
    await stage.plane.until(lambda: stage.plane.demand().held_requests == 0)
    assert (stage.plane.demand().requests_total, stage.plane.demand().tokens_total) == (6, 24)
    assert stage.metric("requests_total", code="200") == 6


async def test_requests_before_the_first_table_wait_and_are_refused_when_it_knows_no_such_service(stage: Stage) -> None:
    chat, other = asyncio.create_task(stage.ask()), asyncio.create_task(stage.ask(model="other"))
    await stage.plane.publish(await stage.start(1, Alphabet()))
    assert (await chat).status_code == 200
    refused = [(await other), await stage.ask(model="other")]
    for response in refused:
        assert (response.status_code, "switchgear services" in response.text) == (404, True)
    assert stage.metric("requests_total", code="404", service="") == 2


async def test_load_spreads_by_tokens_in_flight(stage: Stage) -> None:
    models = Alphabet(), Alphabet()
    for model in models:
        model.hold()
    routes = [await stage.start(number, model) for number, model in enumerate(models, 1)]
    await stage.plane.publish(*routes)
    asked = stage.asks(10)
    await stage.plane.until(lambda: stage.plane.demand().held_requests == 2)
    assert [replica.in_flight_requests for replica in stage.plane.demand().replicas] == [4, 4]
    for model in models:
        model.go()
    assert all_good(await asyncio.gather(*asked))


async def test_a_draining_replica_finishes_gets_nothing_new_and_its_end_is_told(stage: Stage) -> None:
    old, new = Alphabet(), Alphabet()
    old.hold()
    first, second = await stage.start(1, old), await stage.start(2, new)
    await stage.plane.publish(first)
    asked = stage.asks(2)
    await stage.plane.until(lambda: [r.in_flight_requests for r in stage.plane.demand().replicas] == [2])
    await stage.plane.publish(draining(first), second)
    assert all_good(await asyncio.gather(*stage.asks(3)))
    assert [r.in_flight_requests for r in stage.plane.demand().replicas if r.replica == first.replica] == [2]
    old.go()
    assert all_good(await asyncio.gather(*asked))
    await stage.plane.until(lambda: not any(r.in_flight_requests for r in stage.plane.demand().replicas))
    await stage.plane.publish(second)
    await stage.plane.until(lambda: [r.replica for r in stage.plane.demand().replicas] == [second.replica])


async def test_a_replica_that_refuses_is_passed_over_and_one_at_a_foreign_address_too(stage: Stage) -> None:
    good = await stage.start(1, Alphabet())
    foreign = pb.ReplicaRoute(replica=replica_name(2), address=good.address)
    nobody = pb.ReplicaRoute(replica=replica_name(3), address="127.0.0.1:9")
    await stage.plane.publish(foreign, nobody, good)
    assert all_good(await asyncio.gather(*stage.asks(12)))
    assert (stage.metric("retries_total") or 0) >= 2


async def test_with_certificates_all_is_encrypted_and_a_stranger_gets_nothing_from_a_replica(tmp_path: Path) -> None:
    pki.create(tmp_path / "pki", [], time.time_ns())
    ours = pki.Pki(tmp_path / "pki")
    node, _ = ours.node_files("nodes/n1", tmp_path / "node", time.time_ns())
    async with AsyncExitStack() as stack:
        proxying = proxy.Proxy(LIMITS, CollectorRegistry(), SystemClock(), ours.tls_files)
        stack.push_async_callback(proxying.close)
        replica = await stack.enter_async_context(
            serving(Alphabet, ReplicaSettings(model="chat", replica=replica_name(1), tls=node, grace_s=1))
        )
        proxying.apply({SERVICE: ServiceRoutes(0, [Route(replica_name(1), replica.address, draining=False)])})
        address = await stack.enter_async_context(
            http.listening(
                proxying.app(),
                "127.0.0.1:0",
                tls=ours.tls_files,
                client_certificates=False,
                connections_max=9,
                grace_s=1,
            )
        )
        trusting = ssl.create_default_context(cafile=str(ours.ca))
        async with httpx.AsyncClient(verify=trusting, trust_env=False, timeout=60) as client:
            body = {"model": "chat", "prompt": "a", "max_tokens": 3}
            assert all_good([await client.post(f"https://{address}{completions.PATH}", json=body)])
            trusting.check_hostname = False  # a replica's certificate names its node, not its address
            with pytest.raises(httpx.TransportError):
                await client.post(f"https://{replica.address}{completions.PATH}", json=body)
            with pytest.raises(httpx.TransportError):
                await client.post(f"http://{replica.address}{completions.PATH}", json=body)


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that dies in the middle of an answer."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"choices": [')
    await writer.drain()
    writer.close()


async def test_an_answer_that_is_cut_is_never_handed_on_and_a_request_that_kills_all_ends(stage: Stage) -> None:
    async with await asyncio.start_server(breaks_off, "127.0.0.1", 0) as dying:
        address = "{}:{}".format(*dying.sockets[0].getsockname())
        broken = [pb.ReplicaRoute(replica=replica_name(number), address=address) for number in (1, 2)]
        await stage.plane.publish(*broken)
        answer = await stage.ask()
        assert (answer.status_code, "3 replicas broke off this request" in answer.text) == (503, True)
        await stage.plane.until(lambda: stage.plane.demand().failed_requests_total == 1)
        asked = stage.asks(3)
        await stage.plane.publish(broken[0], await stage.start(3, Alphabet()))
        assert all_good(await asyncio.gather(*asked)) or stage.metric("retries_total")
        assert "choices" not in answer.text


async def test_a_replica_that_hangs_and_left_the_table_gives_its_requests_to_another(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "GONE_S", 0.1)
    hanging = Alphabet()
    hanging.hold()
    first, second = await stage.start(1, hanging), await stage.start(2, Alphabet())
    await stage.plane.publish(first)
    asked = stage.asks(2)
    await stage.plane.until(lambda: [r.in_flight_requests for r in stage.plane.demand().replicas] == [2])
    await stage.plane.publish(second)
    assert all_good(await asyncio.gather(*asked))
    hanging.go()


async def test_a_service_that_is_being_deleted_finishes_what_it_has_and_takes_nothing_more() -> None:
    async with staged(replace(LIMITS, in_flight_per_replica=1)) as stage:
        model = Alphabet()
        model.hold()
        route = await stage.start(1, model)
        await stage.plane.publish(route)
        asked = stage.asks(2)
        await stage.plane.until(lambda: stage.plane.demand().held_requests == 1)
        await stage.plane.publish(draining(route), deleting=True)
        assert (await asyncio.wait_for(stage.ask(), 20)).status_code == 404
        model.go()
        answers = await asyncio.wait_for(asyncio.gather(*asked), 20)
        assert sorted(answer.status_code for answer in answers) == [200, 404]


async def test_a_request_that_is_cut_with_its_service_is_refused_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "GONE_S", 0.1)
    hanging = Alphabet()
    hanging.hold()
    await stage.plane.publish(await stage.start(1, hanging))
    (asked,) = stage.asks(1)
    await stage.plane.until(lambda: [r.in_flight_requests for r in stage.plane.demand().replicas] == [1])
    await stage.plane.publish_nothing()
    assert (await asyncio.wait_for(asked, 20)).status_code == 404
    hanging.go()


async def test_a_request_whose_client_went_away_leaves_router_and_replica(stage: Stage) -> None:
    model = Alphabet()
    model.hold()
    await stage.plane.publish(await stage.start(1, model), latency_target_s=1e-6)
    (asked,) = stage.asks(1)
    await stage.plane.until(lambda: [r.in_flight_requests for r in stage.plane.demand().replicas] == [1])
    asked.cancel()
    await stage.plane.until(lambda: [r.in_flight_requests for r in stage.plane.demand().replicas] == [0])
    assert (stage.plane.demand().unanswered_tokens_total, stage.plane.demand().late_requests_total) == (4, 1)
    assert (stage.metric("late_requests_total"), stage.plane.demand().failed_requests_total) == (1, 0)
    await stage.plane.until(lambda: stage.plane.loads[replica_name(1)].running_requests == 0)
    assert stage.metric("requests_total", code="499") == 1
    model.go()


async def test_requests_beyond_the_bound_are_refused_and_held_ones_for_so_long_only() -> None:
    async with staged(replace(LIMITS, held_requests=2, hold_s=0.3)) as stage:
        await stage.plane.publish()
        asked = stage.asks(2)
        await stage.plane.until(lambda: stage.plane.demand().held_requests == 2)
        refused = await stage.ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "2 requests wait for a replica already" in refused.text
        for response in await asyncio.gather(*asked):
            assert (response.status_code, "no replica took this request within 0.3 s" in response.text) == (503, True)
        await stage.plane.until(lambda: stage.plane.demand().failed_requests_total == 3)


async def test_late_answers_are_counted(stage: Stage) -> None:
    route = await stage.start(1, Alphabet())
    await stage.plane.publish(route, latency_target_s=60)
    await stage.ask()
    await stage.plane.publish(route, latency_target_s=1e-6)
    await stage.ask()
    await stage.plane.until(lambda: stage.plane.demand().late_requests_total == 1)
    assert stage.metric("late_requests_total") == 1


async def test_without_the_autoscaler_the_router_goes_on_and_confirms_nothing_that_it_has_not_seen() -> None:
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        async with serving_plane() as plane:
            settings = router.RouterSettings(autoscaler=plane.address, listen="127.0.0.1:0", grace_s=1)
            address = await stack.enter_async_context(router.serve(settings, registry))
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{address}", trust_env=False))
            stage = Stage(plane, client, registry, stack)
            route = await stage.start(1, Alphabet())
            await plane.publish(route)
        assert (await stage.ask()).status_code == 200
        async with serving_plane(plane.address) as again:
            await again.until(lambda: again.report.instance_id)
            assert again.report.table_version == 0
            assert [demand.service for demand in again.report.services] == [SERVICE]
            await again.publish(route)
            assert (await stage.ask()).status_code == 200


async def test_a_table_that_cannot_be_used_costs_neither_the_last_one_nor_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_link, "FAULT_DELAY_S", 0.05)
    route = await stage.start(1, Alphabet())
    await stage.plane.publish(route)
    lost = asyncio.Event()
    keep = proxy.Proxy.connected

    def connected(of: proxy.Proxy, yes: bool) -> None:
        keep(of, yes)
        if not yes:
            lost.set()

    monkeypatch.setattr(proxy.Proxy, "connected", connected)
    assert stage.registry.get_sample_value("switchgear_router_connected") == 1
    broken = asyncio.create_task(stage.plane.publish_broken())
    await asyncio.wait_for(lost.wait(), 30)
    assert (await stage.ask()).status_code == 200
    broken.cancel()
    await asyncio.wait_for(stage.plane.publish(route, latency_target_s=3), 30)
    assert stage.registry.get_sample_value("switchgear_router_connected") == 1


async def test_the_series_of_a_service_that_is_gone_are_gone(stage: Stage) -> None:
    await stage.plane.publish(await stage.start(1, Alphabet()))
    await stage.ask()
    assert 'service="chat"' in (await stage.client.get("/metrics")).text
    await stage.plane.publish_nothing()
    assert 'service="chat"' not in (await stage.client.get("/metrics")).text
