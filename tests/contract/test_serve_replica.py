"""A replica over real HTTP, and its line to the autoscaler over real gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx
import pytest
from serving_plane import SERVICE, Alphabet, replica_name, serving_plane

from switchgear.core.errors import FailedPrecondition, SwitchgearError
from switchgear.serve import completions, engine
from switchgear.serve.replica import REPLICA_HEADER, Replica, ReplicaSettings, serving, settings

SETTINGS = ReplicaSettings(model="chat", running_max=2, waiting_max=2, grace_s=30)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def model() -> Alphabet:
    return Alphabet()


@pytest.fixture
async def client(model: Alphabet) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(lambda: model, SETTINGS) as replica, connected(replica) as client:
        yield client


def connected(replica: Replica) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(retries=0)
    return httpx.AsyncClient(base_url=f"http://{replica.address}", timeout=60, trust_env=False, transport=transport)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await check():
                return
            await asyncio.sleep(0.01)


async def ready(client: httpx.AsyncClient) -> None:
    async def is_ready() -> bool:
        return (await client.get("/health")).status_code == 200

    await eventually(is_ready)


async def ask(client: httpx.AsyncClient, prompt: str = "a", **fields: object) -> httpx.Response:
    return await client.post(completions.PATH, json={"model": "chat", "prompt": prompt, "max_tokens": 3, **fields})


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def until(client: httpx.AsyncClient, name: str, value: float) -> None:
    async def reached() -> bool:
        return await metric(client, name) == value

    await eventually(reached)


async def test_answers_have_openais_form_and_end_by_length_or_by_the_model(client: httpx.AsyncClient) -> None:
    await ready(client)
    answer = (await ask(client, "xab")).json()
    assert answer["choices"] == [{"index": 0, "text": "cde", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    ended = (await ask(client, " ", max_tokens=9)).json()
    assert ended["choices"][0] == {"index": 0, "text": "!", "logprobs": None, "finish_reason": "stop"}


async def test_requests_are_generated_together_and_one_that_comes_later_joins(
    client: httpx.AsyncClient, model: Alphabet
) -> None:
    await ready(client)
    model.hold()
    first = asyncio.create_task(ask(client, max_tokens=4))
    await until(client, "vllm:num_requests_running", 1)
    others = [asyncio.create_task(ask(client, max_tokens=2)) for _ in range(2)]
    await until(client, "vllm:num_requests_waiting", 2)
    model.go()
    texts = [(await task).json()["choices"][0]["text"] for task in (first, *others)]
    assert texts == ["bcde", "bc", "bc"]
    assert model.batches == [1, 2, 2, 2, 1]


async def test_more_than_may_wait_are_refused_with_503_and_when_to_come_back(
    client: httpx.AsyncClient, model: Alphabet
) -> None:
    await ready(client)
    model.hold()
    running = asyncio.create_task(ask(client))
    await until(client, "vllm:num_requests_running", 1)
    waiting = [asyncio.create_task(ask(client)) for _ in range(2)]
    await until(client, "vllm:num_requests_waiting", 2)
    refused = await ask(client)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "2 requests wait here already" in refused.json()["error"]["message"]
    model.go()
    assert [(await task).status_code for task in (running, *waiting)] == [200, 200, 200]


async def test_a_request_whose_client_went_away_is_not_generated_any_more(
    client: httpx.AsyncClient, model: Alphabet
) -> None:
    await ready(client)
    model.hold()
    task = asyncio.create_task(ask(client, max_tokens=1000))
    await until(client, "vllm:num_requests_running", 1)
    task.cancel()
    await until(client, 'vllm:request_success_total{finished_reason="abort"', 1)
    assert await metric(client, "vllm:num_requests_running") == 0
    model.go()
    assert (await ask(client)).status_code == 200
    assert len(model.batches) <= 4


async def test_a_strange_request_fails_alone_and_a_lost_device_ends_the_replica(model: Alphabet) -> None:
    async with serving(lambda: model, SETTINGS) as replica, connected(replica) as client:
        await ready(client)
        model.failures = 1
        failed = await ask(client)
        assert (failed.status_code, (await ask(client)).status_code) == (500, 200)
        assert "the model failed: RuntimeError" in failed.json()["error"]["message"]
        model.failures = 3
        assert [(await ask(client)).status_code for _ in range(3)] == [500, 500, 500]
        with pytest.raises(SwitchgearError, match="failed again and again"):
            await replica.ended()
        assert (await client.get("/health")).status_code == 503


async def test_an_answer_of_the_model_that_cannot_be_booked_fails_like_the_model() -> None:
    class Short(Alphabet):
        def next_tokens(self, sequences: Sequence[object]) -> list[int]:
            return []

    async with serving(Short, SETTINGS) as replica, connected(replica) as client:
        await ready(client)
        assert [(await asyncio.wait_for(ask(client), 20)).status_code for _ in range(3)] == [500, 500, 500]
        with pytest.raises(SwitchgearError, match="failed again and again"):
            await replica.ended()


async def test_a_replica_whose_engine_dies_refuses_what_it_has_and_ends() -> None:
    class Exits(Alphabet):
        def next_tokens(self, sequences: Sequence[object]) -> list[int]:
            raise SystemExit(3)

    async with serving(Exits, SETTINGS) as replica, connected(replica) as client:
        await ready(client)
        died = await asyncio.wait_for(ask(client), 20)
        assert (died.status_code, "the engine died: SystemExit" in died.text) == (500, True)
        assert (await ask(client)).status_code == 503
        with pytest.raises(SwitchgearError):
            await replica.ended()


async def test_a_replica_whose_model_hangs_is_not_ready_until_it_goes_on(
    client: httpx.AsyncClient, model: Alphabet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(client)
    model.hold()
    asked = asyncio.create_task(ask(client))
    await until(client, "vllm:num_requests_running", 1)
    monkeypatch.setattr(engine, "ITERATION_S_MAX", 0.0)
    assert (await client.get("/health")).status_code == 503
    monkeypatch.undo()
    model.go()
    assert (await asked).status_code == 200
    await ready(client)


async def test_a_model_that_cannot_be_loaded_ends_the_replica() -> None:
    def load() -> Alphabet:
        raise FileNotFoundError("no such checkpoint")

    async with serving(load, SETTINGS) as replica:
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            await replica.ended()


async def test_a_throttled_replica_takes_its_time_after_a_pause_too(model: Alphabet) -> None:
    throttled = replace(SETTINGS, tokens_per_second_max=200)
    async with serving(lambda: model, throttled) as replica, connected(replica) as client:
        await ready(client)
        await asyncio.sleep(0.2)
        start_s = time.monotonic()
        assert (await ask(client, "A", max_tokens=20)).status_code == 200
        assert time.monotonic() - start_s >= 19 / 200


async def test_wrong_requests_are_told_apart(client: httpx.AsyncClient) -> None:
    await ready(client)
    too_long = b"x" * (completions.BODY_BYTES_MAX + 1)
    for response, status, part in (
        (await ask(client, stream=True), 400, "streaming is not served"),
        (await ask(client, model="other"), 404, "model 'other' is not served here; ask for 'chat'"),
        (await client.post(completions.PATH, content=too_long, headers=JSON), 400, "bytes"),
        (await client.post(completions.PATH, content=b"{}"), 400, "Content-Type: application/json"),
        (
            await client.post(completions.PATH, content=b"{}", headers={"Content-Type": "text/plain"}),
            400,
            "Content-Type",
        ),
        (await client.post(completions.PATH, json={}, headers={"Host": "rebound.example"}), 421, "localhost"),
        (await client.get("/metrics", headers={"Host": "127.0.0.1.rebound.example:80"}), 421, "localhost"),
        (await client.post(completions.PATH, json={}, headers={REPLICA_HEADER: replica_name(7)}), 421, "not "),
    ):
        assert (response.status_code, part in response.json()["error"]["message"]) == (status, True), response.text


async def test_what_is_in_flight_at_the_end_is_finished(model: Alphabet) -> None:
    async with AsyncExitStack() as after:
        async with serving(lambda: model, SETTINGS) as replica:
            client = await after.enter_async_context(connected(replica))
            await ready(client)
            model.hold()
            task = asyncio.create_task(ask(client))
            await until(client, "vllm:num_requests_running", 1)
            asyncio.get_running_loop().call_later(0.2, model.go)
        assert (await task).json()["choices"][0]["text"] == "bcd"


async def test_a_replica_registers_and_reports_its_load(model: Alphabet) -> None:
    name = replica_name(1)
    async with serving_plane() as plane:
        registered = replace(SETTINGS, replica=name, autoscaler=plane.address)
        async with serving(lambda: model, registered) as replica, connected(replica) as client:
            assert (await plane.ready(1)).address == replica.address
            await ask(client)
            await plane.until(lambda: plane.loads[name].tokens_total == 3)
            assert plane.loads[name].busy_seconds_total > 0


async def test_a_replica_outlives_the_autoscaler_and_comes_back_to_one_that_was_started_anew(model: Alphabet) -> None:
    async with AsyncExitStack() as after:
        async with serving_plane() as plane:
            registered = replace(SETTINGS, replica=replica_name(1), autoscaler=plane.address)
            replica = await after.enter_async_context(serving(lambda: model, registered))
            await plane.ready(1)
        async with connected(replica) as client:
            assert (await ask(client)).status_code == 200
        async with serving_plane(plane.address) as again:
            assert (await again.ready(1)).address == replica.address


async def test_a_replica_that_has_ended_for_the_autoscaler_ends(model: Alphabet) -> None:
    async with serving_plane() as plane:
        plane.ended.add(replica_name(1))
        registered = replace(SETTINGS, replica=replica_name(1), autoscaler=plane.address)
        async with serving(lambda: model, registered) as replica, asyncio.timeout(30):
            await replica.ended()


def test_a_replica_takes_its_name_and_place_from_the_environment() -> None:
    environment = {
        "SWITCHGEAR_REPLICA": f"{SERVICE}/replicas/3",
        "SWITCHGEAR_NODE_ADDRESS": "127.0.0.2",
        "SWITCHGEAR_AUTOSCALER": "127.0.0.1:7070",
    }
    made = settings(environment, model="gpt", address="127.0.0.1:8000", tokens_per_second_max=50)
    assert (made.model, made.address, made.replica) == ("chat", "127.0.0.2:0", f"{SERVICE}/replicas/3")
    alone = settings({}, model="gpt", address="127.0.0.1:8000")
    assert (alone.model, alone.address, alone.replica) == ("gpt", "127.0.0.1:8000", "")


async def test_beyond_loopback_nothing_listens_without_tls(model: Alphabet) -> None:
    with pytest.raises(FailedPrecondition, match="TLS"):
        async with serving(lambda: model, replace(SETTINGS, address="0.0.0.0:0")):
            pass
