"""`switchgear services`, against a running autoscaler."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from autoscaler_plane import SERVICE, Plane, Router, running
from scheduler_plane import until

from switchgear.autoscaler.decision_file import Tail
from switchgear.cli import exits
from switchgear.cli.main import main
from switchgear.core.errors import Reason
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1.autoscaler_service_pb2_grpc import AutoscalerServiceStub


@pytest.fixture
async def plane(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(sqlite_database, tmp_path) as plane:
        yield plane


async def test_a_service_is_created_listed_shown_scaled_and_deleted(
    plane: Plane, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def services(*words: str) -> tuple[int, str]:
        arguments = ["services", "--server", plane.address, *words]
        code = await asyncio.to_thread(main, arguments)
        return code, capsys.readouterr().out

    await plane.agent("a")
    assert (await services())[1].startswith("no inference services: make one with")
    create = ("create", "chat", "--min", "1", "--max", "2", "--tokens-per-second", "40", "--env", "B=2")
    assert (await services(*create, "--", "serve.py"))[0] == exits.exit_code(Reason.SCRIPT_UNREADABLE)
    (tmp_path / "serve.py").touch()
    with pytest.raises(SystemExit, match="2"):
        await services("create", "chat", "--max", "99999999999999", "--", "serve.py")
    assert (await services("create", "chat", "--tokens-per-second", "1e-9", "--", "serve.py"))[0] == exits.USAGE
    code, out = await services(*create, "--", "serve.py", "--json", "--batch", "4")
    assert (code, out) == (exits.OK, f"{SERVICE}: 0 ready, 1 desired of 1 to 2\n")
    spec = (await plane.get()).spec
    assert (list(spec.argv), dict(spec.environment)) == (["serve.py", "--json", "--batch", "4"], {"B": "2"})
    await plane.ready(1)
    assert "chat     1      1        1-2" in (await services())[1]
    shown = (await services("chat"))[1]
    assert "READY  a     127.0.0.1:9001  0        0" in shown
    found = json.loads((await services("chat", "--json"))[1])
    assert [one["name"] for one in found] == [SERVICE, f"{SERVICE}/replicas/1"]
    assert (await services("scale", "chat", "--min", "2"))[1] == f"{SERVICE}: 1 ready, 2 desired of 2 to 2\n"
    await plane.replica_in(2, pb.Replica.STARTING)
    # The promise is changed alone, and without a new replica.
    assert (await services("update", "chat", "--slo-ttft", "1.5", "--slo-tpot", "0"))[0] == exits.OK
    slo, before = (await plane.get()).spec.slo, spec.slo
    assert (slo.ttft_seconds, slo.tpot_seconds) == (1.5, 0)
    assert (slo.objective, slo.ttft_prefill_factor, slo.e2e_seconds) == (
        before.objective,
        before.ttft_prefill_factor,
        before.e2e_seconds,
    )
    assert (await plane.get()).outdated_replicas == 0
    assert (await services("update", "chat", "--slo-objective", "1.5"))[0] == exits.USAGE
    assert (await services("delete", "chat"))[1] == f"{SERVICE}: being deleted, 1 ready\n"
    assert (await services("create", "other"))[0] == exits.USAGE


async def test_decisions_are_shown_replayed_and_a_shadow_decides_beside(
    plane: Plane, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def services(*words: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["services", "--server", plane.address, *words])
        return code, capsys.readouterr().out

    await plane.agent("a")
    await plane.create(1, 4)
    router = Router(plane, "router")
    await plane.ready(1)
    await router.routes(1)

    async def decide(times: int) -> None:
        for _ in range(times):
            plane.clock.advance(4.95)
            await router.report(requests_total=3, tokens_total=30, kept_requests_total=2, broken_requests_total=1)
            await plane.passes()

    await decide(2)
    assert (await services("shadow", "chat", "static:3"))[1] == "chat: static:3 decides beside\n"
    assert (await services("shadow", "chat", "nonsense"))[0] == exits.USAGE
    assert (await services("shadow", "chat", "--target", "8"))[0] == exits.USAGE
    await decide(3)
    assert "shadow static:3: would have 3" in (await services("chat"))[1]
    assert (
        plane.registry.get_sample_value(
            "switchgear_autoscaler_shadow_replicas", {"service": "chat", "policy": "static:3"}
        )
        == 3
    )
    code, shown = await services("decisions", "chat", "--newest", "2")
    assert (code, shown.count("\n"), shown.count("[shadow: 3]")) == (exits.OK, 2, 2)
    log = tmp_path / "chat.jsonl"
    log.write_text((await services("decisions", "chat", "--json"))[1])
    code, told = await services("replay", str(log))
    assert (code, "all the same" in told) == (0, True), told
    packed = tmp_path / "00000001.jsonl.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    assert (await services("replay", str(packed)))[0] == exits.OK
    packed.write_bytes(gzip.compress(log.read_bytes())[:-20])
    assert (await services("replay", str(packed)))[0] == exits.USAGE
    code, told = await services("replay", str(log), "--policy", "static:2")
    assert (code, "static:2 would have wanted" in told) == (0, True), told
    log.write_text(log.read_text().replace('"decision":{"replicas":1', '"decision":{"replicas":4'))
    code, told = await services("replay", str(log))
    assert (code, told.splitlines()[0][:18]) == (1, "decision 1 differs")


async def test_whoever_follows_gets_decisions_as_they_come(plane: Plane) -> None:
    await plane.create(0, 2)
    router = Router(plane, "router")
    async with grpc.aio.insecure_channel(plane.address) as channel:
        stub: Any = AutoscalerServiceStub(channel)
        stream = aiter(stub.WatchDecisions(pb.WatchDecisionsRequest(name=SERVICE, follow=True), timeout=60))
        assert (await anext(stream)).line.startswith('{"log":1,"service":"inferenceServices/chat"')
        first = json.loads((await anext(stream)).line)
        plane.clock.advance(4.95)
        await router.report()
        second = json.loads((await anext(stream)).line)
        await stub.DeleteInferenceService(pb.DeleteInferenceServiceRequest(name=SERVICE))
        with pytest.raises(grpc.aio.AioRpcError, match="does not exist"):
            _ = [response async for response in stream]
    assert second["now_s"] - first["now_s"] == pytest.approx(4.95)


async def test_what_a_policy_has_learned_and_its_shadow_outlive_the_autoscaler(plane: Plane, tmp_path: Path) -> None:
    await plane.create(0, 2, shadow_policy="static:2")
    router = Router(plane, "router")
    for _ in range(8):
        plane.clock.advance(4.95)
        await router.report()
        await plane.passes()
    await plane.restart_autoscaler()
    plane.clock.advance(4.95)
    await router.report()
    await until(lambda: _shown(plane))
    lines = list(Tail(tmp_path / "autoscaler" / "chat").lines())
    times = [json.loads(line)["now_s"] for line in lines if not line.startswith('{"log"')]
    assert times == sorted(times)
    assert len([line for line in lines if line.startswith('{"log"')]) == 2


async def _shown(plane: Plane) -> bool:
    return (await plane.get()).shadow.policy == "static:2"
