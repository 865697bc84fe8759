"""`switchgear inference scale` between real servers: engines' pages before it, KEDA's contract and Prometheus behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from engine_pages import KV_NEW, KV_OLD, Engines
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_stack import Prometheus
from terminal import wait_for

from switchgear.access import pki
from switchgear.autoscaler.decision_file import Tail
from switchgear.autoscaler.decision_log import Head, Record, read
from switchgear.autoscaler.external import settings
from switchgear.autoscaler.external.board import Board
from switchgear.autoscaler.external.following import Follower
from switchgear.autoscaler.external.keda import SERVICE, ExternalScaler
from switchgear.autoscaler.external.main import ScaleSettings, follower, running
from switchgear.autoscaler.external.metrics import BoardCollector, ExternalMetrics
from switchgear.autoscaler.external.state import FILE, State, save
from switchgear.autoscaler.observation import Phase
from switchgear.autoscaler.sizing.policy import VERSION
from switchgear.core import rpc
from switchgear.core.clock import ManualClock, SystemClock
from switchgear.core.errors import Reason, SwitchgearError
from switchgear.keda import external_scaler_pb2 as pb
from switchgear.keda import external_scaler_pb2_grpc

CHAT = pb.ScaledObjectRef(name="chat", namespace="ml", scaler_metadata={"service": "chat"})


@pytest.fixture
def engines() -> Iterator[Engines]:
    made = Engines(3)
    yield made
    made.close()


class World:
    """One service that is looked at when the test says so, behind a real gRPC server."""

    def __init__(self, board: Board, one: Follower, clock: ManualClock, registry: CollectorRegistry) -> None:
        self.board, self._one, self.clock, self._registry = board, one, clock, registry

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(10)
            await self._one.look()

    def value(self, name: str) -> float | None:
        return self._registry.get_sample_value(name, {"service": "chat"})


@asynccontextmanager
async def world(folder: Path, clock: ManualClock | None = None, **keys: object) -> AsyncIterator[World]:
    clock, registry = clock or ManualClock(), CollectorRegistry()
    given = {"name": "chat", "max_replicas": 8, "interval_s": 10.0, "policy": "hpa:4"} | keys
    (service,) = settings.of_flags(given).service
    board = Board(["chat"], clock)
    registry.register(BoardCollector(board, clock))
    async with follower(service, folder, board, ExternalMetrics(registry), clock) as one:
        yield World(board, one, clock, registry)


@asynccontextmanager
async def keda(board: Board) -> AsyncIterator[external_scaler_pb2_grpc.ExternalScalerAsyncStub]:
    server = rpc.Server()
    external_scaler_pb2_grpc.add_ExternalScalerServicer_to_server(ExternalScaler(board), server.grpc)
    address = await server.start("127.0.0.1:0", [SERVICE])
    async with rpc.channel(address) as channel:
        yield external_scaler_pb2_grpc.ExternalScalerStub(channel)  # type: ignore[misc]
    board.close()
    await server.stop()


async def refused(call: object) -> SwitchgearError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return rpc.from_rpc_error(failed.value)


async def test_keda_gets_the_desired_number_with_target_one(tmp_path: Path, engines: Engines) -> None:
    async with world(tmp_path, endpoints=engines.urls) as one, keda(one.board) as stub:
        request = pb.GetMetricsRequest(scaled_object_ref=CHAT, metric_name="switchgear-desired-replicas-chat")
        (spec,) = (await stub.GetMetricSpec(CHAT)).metric_specs
        assert (spec.metric_name, spec.target_size, spec.target_size_float) == (request.metric_name, 1, 1.0)
        assert (await refused(stub.GetMetrics(request))).reason is Reason.METRICS_UNSEEN
        assert (await refused(stub.IsActive(CHAT))).reason is Reason.METRICS_UNSEEN
        for page in engines.pages:
            page.running = 8
        await one.look(2)
        (value,) = (await stub.GetMetrics(request)).metric_values
        assert (value.metric_name, value.metric_value, value.metric_value_float) == (request.metric_name, 6, 6.0)
        assert (await stub.IsActive(CHAT)).result is True
        assert one.value("switchgear_desired_replicas") == 6
        assert one.value("switchgear_current_replicas") == 3
        assert one.value("switchgear_inference_blind") == 0


@pytest.mark.parametrize(
    ("metadata", "code", "told"),
    [
        ({}, "INVALID_ARGUMENT", "the trigger of ml/x does not say which service it means; write `service: NAME`"),
        ({"service": "talk"}, "NOT_FOUND", "no service is named 'talk' here; there are: chat"),
    ],
)
async def test_a_scaled_object_that_names_no_service_of_ours_is_told_so(
    metadata: dict[str, str], code: str, told: str
) -> None:
    scaled = pb.ScaledObjectRef(name="x", namespace="ml", scaler_metadata=metadata)
    async with keda(Board(["chat"], ManualClock())) as stub:
        for call in (
            stub.IsActive(scaled),
            stub.StreamIsActive(scaled).read(),
            stub.GetMetricSpec(scaled),
            stub.GetMetrics(pb.GetMetricsRequest(scaled_object_ref=scaled)),
        ):
            error = await refused(call)
            assert (error.code, error.message[: len(told)]) == (code, told)


async def test_from_zero_is_pushed(tmp_path: Path, engines: Engines) -> None:
    """The gateway is our router, by its own metrics."""
    router = (
        'switchgear_build_info{component="router",version="1"} 1\nswitchgear_router_held_requests{service="other"} 50\n'
    )
    router += 'switchgear_router_held_requests{service="chat"} '
    gateway = engines.pages[2]
    gateway.text = f"{router}0\n"
    (tmp_path / "empty.json").write_text("[]")
    async with (
        world(
            tmp_path,
            endpoints_file=tmp_path / "empty.json",
            gateway=engines.url(2),
            gateway_labels={"service": "chat"},
            min_replicas=0,
            policy="keda:4",
        ) as one,
        keda(one.board) as stub,
    ):
        pushed = stub.StreamIsActive(CHAT)
        await one.look(2)
        assert (await asyncio.wait_for(pushed.read(), 5)).result is False  # type: ignore[union-attr]
        assert (await stub.IsActive(CHAT)).result is False
        waits = asyncio.ensure_future(pushed.read())
        gateway.text = f"{router}9\n"
        await one.look(3)  # this policy polls each 30 seconds
        assert (await asyncio.wait_for(waits, 5)).result is True  # type: ignore[union-attr]
        one.board.close()
        assert await pushed.read() is grpc.aio.EOF  # type: ignore[attr-defined]


async def test_series_that_vanish_in_mid_run_hold_and_are_signalled_within_two_scrapes(
    tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with world(tmp_path, endpoints=engines.urls, policy="switchgear") as one, keda(one.board) as stub:
        request = pb.GetMetricsRequest(scaled_object_ref=CHAT)
        for _ in range(4):
            await one.look()
            for page in engines.pages:
                page.serve(20)
                page.running = 3
        before = one.value("switchgear_desired_replicas")
        assert before
        for page in engines.pages:  # from here on the pages tell of no load at all
            page.hidden = {"vllm:num_requests_running", "vllm:generation_tokens_total", "vllm:request_success_total"}
            page.running = 0
        await one.look(2)
        assert one.value("switchgear_inference_blind") == 1
        assert "vllm:num_requests_running vanished" in caplog.text
        assert "vllm:num_requests_running vanished" in (await refused(stub.GetMetrics(request))).message
        await one.look(60)
        assert (one.value("switchgear_desired_replicas") or 0) >= before
        assert one.value("switchgear_autoscaler_scrape_age_seconds") == 620
        for page in engines.pages:
            page.hidden = set()
        await one.look(3)
        assert one.value("switchgear_inference_blind") == 0
        assert (await stub.GetMetrics(request)).metric_values
        assert "chat is seen again" in caplog.text


async def test_a_series_that_is_renamed_in_mid_run_is_named_and_used(
    tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    for page in engines.pages:
        page.kv = KV_OLD
    async with world(tmp_path, endpoints=engines.urls, policy="static:1") as one:
        await one.look(2)
        for page in engines.pages:
            page.kv = KV_NEW
            page.running = 5
        await one.look()
        assert one.value("switchgear_inference_blind") == 1
        assert f"{KV_OLD} vanished; {KV_NEW} is there now and is used" in caplog.text
        await one.look(2)
        assert one.value("switchgear_inference_blind") == 0


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [(500, None, "it answers 500"), (200, "<html>login", "web page"), (200, "", "no series of an inference server")],
)
async def test_pages_that_vanish_hold_and_say_why(
    tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture, status: int, text: str | None, told: str
) -> None:
    async with world(tmp_path, endpoints=engines.urls, policy="hpa:4") as one:
        for page in engines.pages:
            page.running = 4
        await one.look(2)
        for page in engines.pages:
            page.status, page.text = status, text
        await one.look(2)
        assert one.value("switchgear_inference_blind") == 1
        await one.look(40)
        assert one.value("switchgear_desired_replicas") == 3
        assert told in caplog.text


async def test_a_restart_goes_on_from_the_same_decision(tmp_path: Path, engines: Engines) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock, endpoints=engines.urls) as one:
        for page in engines.pages:
            page.running = 8
        await one.look(2)
        assert one.value("switchgear_desired_replicas") == 6
    clock.advance(30)
    for page in engines.pages:
        page.running = 4
    async with world(tmp_path, clock, endpoints=engines.urls) as one:
        await one.look()
        assert one.value("switchgear_desired_replicas") is None
        await one.look()
        assert one.value("switchgear_desired_replicas") == 6
    log = [*read(Tail(tmp_path / "chat" / "decisions").lines(), "log")]
    assert [(one.service, one.policy) for one in log if isinstance(one, Head)] == [("chat", "hpa:4")] * 2
    records = [one for one in log if isinstance(one, Record)]
    starting = [[row.age_s for row in record.seen.replicas if row.phase is Phase.STARTING] for record in records]
    assert starting == [[], [50.0, 50.0, 50.0]]


async def test_what_a_policy_learned_and_nobody_can_read_is_left_out(
    tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "chat").mkdir()
    kept = State(5.0, 1.6e9, 3, (), ("a",), "switchgear", {"version": VERSION, "learned": "by heart"})
    save(tmp_path / "chat" / FILE, kept)
    async with world(tmp_path, endpoints=engines.urls, policy="switchgear") as one:
        await one.look(2)
        assert one.value("switchgear_desired_replicas") == 3
    assert "what switchgear learned about chat cannot be used" in caplog.text


async def test_a_file_of_replicas_is_read_again_and_a_broken_one_blinds(tmp_path: Path, engines: Engines) -> None:
    listed = tmp_path / "replicas.json"
    listed.write_text(json.dumps([{"targets": [engines.url(0)]}, {"targets": [engines.url(1)]}]))
    async with world(tmp_path, endpoints_file=listed, policy="static:2") as one:
        await one.look(2)
        assert one.value("switchgear_current_replicas") == 2
        listed.write_text(json.dumps([{"targets": list(engines.urls)}]))
        await one.look()
        assert one.value("switchgear_current_replicas") == 3
        listed.write_text("[{")
        await one.look()
        assert one.value("switchgear_current_replicas") == 3
        assert one.value("switchgear_inference_blind") == 1
        listed.write_text(json.dumps([{"targets": [engines.url(0)]}]))
        await one.look()
        assert (one.value("switchgear_current_replicas"), one.value("switchgear_inference_blind")) == (1, 0)


async def test_addresses_of_a_name_are_replicas(tmp_path: Path, engines: Engines) -> None:
    async with world(tmp_path, dns=f"http://localhost:{engines.port}/0/metrics", policy="static:1") as one:
        await one.look(2)
        assert one.value("switchgear_current_replicas") == 1


@pytest.mark.parametrize(
    ("labels", "blind", "told"),
    [
        ({"service": "typo"}, "", "one is kept, since the gateway has not told yet how many requests it holds"),
        ({"Service": "chat"}, "the gateway does not tell (none of its series has the label 'Service'", ""),
    ],
)
async def test_without_a_gateway_that_tells_of_the_service_nothing_goes_to_zero(
    tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture, labels: dict[str, str], blind: str, told: str
) -> None:
    """From zero nobody would see a request."""
    caplog.set_level(logging.INFO)
    gateway = engines.pages[2]
    gateway.text = (
        'switchgear_build_info{component="router",version="1"} 1\nswitchgear_router_held_requests{service="chat"} 0\n'
    )
    given: dict[str, Any] = {
        "endpoints": engines.urls[:2],
        "gateway": engines.url(2),
        "min_replicas": 0,
        "policy": "static:0",
    }
    async with world(tmp_path / "wrong", **given, gateway_labels=labels) as one:
        await one.look(3)
        published = one.board.of("chat")
        assert published.desired >= 1
        assert published.blind.startswith(blind) if blind else not published.blind
        assert told in caplog.text
    async with world(tmp_path / "right", **given, gateway_labels={"service": "chat"}) as one:
        await one.look(3)
        assert one.value("switchgear_desired_replicas") == 0


async def test_a_prometheus_that_has_too_much_to_tell_says_what_helps(
    tmp_path: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also before anything was decided, which happens when it is so from the beginning."""
    monkeypatch.setattr("switchgear.autoscaler.adapters.fetch.BYTES_MAX", 1000)
    engines.pages[0].text = "x" * 2000
    given = {"url": engines.url(0).removesuffix("/metrics"), "selector": '{app="chat"}'}
    async with world(tmp_path, prometheus=given, engine="vllm") as one:
        await one.look(3)
        with pytest.raises(SwitchgearError, match="its log says why"):
            one.board.of("chat")
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("chat: nothing is decided yet: ")
    assert told.endswith("find these with dns or endpoints_file")


async def test_what_prometheus_knows_of_replicas_is_enough(tmp_path: Path, engines: Engines) -> None:
    server, clock = engines.pages[0], ManualClock()

    def answer(**up: int) -> None:
        """Each replica runs eight requests as of now, unless its scrape failed."""
        at_s, result = clock.unix_ns() / 1e9 + 10, []
        for pod, value in up.items():
            result.append({"metric": {"__name__": "up", "pod": pod}, "values": [[at_s, str(value)]]})
            for line in str(engines.pages[1]).splitlines() if value else ():
                name, labels, told = re.fullmatch(r"(\S+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
                metric = dict(re.findall(r'(\w+)="(.*?)"', labels)) | {"__name__": name, "pod": pod}
                result.append({"metric": metric, "values": [[at_s, told]]})
        server.text = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})

    engines.pages[1].running = 8
    given = {"url": engines.url(0).removesuffix("/metrics"), "selector": '{app="chat"}', "replica_label": "pod"}
    async with world(tmp_path, clock, prometheus=given, engine="vllm") as one:
        for _ in range(2):
            answer(a=1, b=1)
            await one.look()
        assert (one.value("switchgear_current_replicas"), one.value("switchgear_desired_replicas")) == (2, 4)
        answer(a=0, b=0)
        await one.look()
        assert one.value("switchgear_inference_blind") == 1
        answer(b=1)  # a is no target any more
        await one.look()
        assert (one.value("switchgear_current_replicas"), one.value("switchgear_inference_blind")) == (1, 0)
        server.status = 503
        await one.look()
        assert one.value("switchgear_inference_blind") == 1
        assert "it answers 503" in one.board.of("chat").blind


@pytest.mark.slow  # a Prometheus needs five seconds until it scrapes
async def test_a_prometheus_that_scrapes_the_engines_tells_of_them(tmp_path: Path, engines: Engines) -> None:
    jobs = [
        {
            "job_name": f"engine-{number}",
            "metrics_path": f"/{number}/metrics",
            "static_configs": [
                {"targets": [f"127.0.0.1:{engines.port}"], "labels": {"app": "chat", "pod": f"chat-{number}"}}
            ],
        }
        for number in range(3)
    ]
    (tmp_path / "stack").mkdir()
    server = Prometheus(tmp_path / "stack", {"global": {"scrape_interval": "500ms"}, "scrape_configs": jobs})
    try:
        wait_for(lambda: len(server.query('vllm:num_requests_running{app="chat"}')) == 3, 20)
        given = {"url": f"http://{server.address}", "selector": '{app="chat"}', "replica_label": "pod"}
        (service,) = settings.of_flags(
            {"name": "chat", "prometheus": given, "engine": "vllm", "max_replicas": 8, "interval_s": 2.0,
             "timeout_s": 2.0, "policy": "hpa:4"}
        ).service  # fmt: skip
        clock, registry = SystemClock(), CollectorRegistry()
        board = Board(["chat"], clock)
        registry.register(BoardCollector(board, clock))
        async with follower(service, tmp_path, board, ExternalMetrics(registry), clock) as one:

            async def look() -> dict[str, float | None]:
                await asyncio.sleep(0.7)
                await one.look()
                names = ("current_replicas", "desired_replicas", "autoscaler_blind")
                return {name: registry.get_sample_value(f"switchgear_{name}", {"service": "chat"}) for name in names}

            for page in engines.pages:
                page.running = 8
            await one.look()
            assert await look() == {"current_replicas": 3, "desired_replicas": 6, "autoscaler_blind": 0}
            for page in engines.pages:
                page.status = 500
            gone = await look()
            assert (gone["desired_replicas"], gone["autoscaler_blind"]) == (6, 1)
            assert "Prometheus cannot scrape it" in board.of("chat").blind
    finally:
        server.close()


async def test_with_tls_only_clients_with_a_certificate_of_the_ca_may_ask(tmp_path: Path, engines: Engines) -> None:
    pki.create(tmp_path / "pki", [], time.time_ns())
    ours = pki.Pki.find(tmp_path / "pki")
    assert ours
    given = {
        "name": "chat",
        "endpoints": engines.urls,
        "max_replicas": 8,
        "policy": "static:2",
        "interval_s": 0.1,
        "timeout_s": 0.1,
    }
    config = settings.of_flags(given)
    scale = ScaleSettings(config.service, tmp_path / "state", "127.0.0.1:0", "127.0.0.1:0", ours.tls_files)
    registry = CollectorRegistry()
    async with running(scale, SystemClock(), registry) as addresses:
        async with rpc.channel(addresses.grpc, ours.tls_files) as channel:
            stub = external_scaler_pb2_grpc.ExternalScalerStub(channel)
            assert (await anext(aiter(stub.StreamIsActive(CHAT)))).result is True
        stranger = grpc.ssl_channel_credentials(ours.ca.read_bytes())
        async with grpc.aio.secure_channel(addresses.grpc, stranger) as channel:
            stub = external_scaler_pb2_grpc.ExternalScalerStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.IsActive(CHAT, timeout=3)
        assert b"switchgear_desired_replicas" in generate_latest(registry)
