"""Who is let in, who is not, and what the audit log says about it: real gRPC with real TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from access_world import World, foreign_files, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from switchgear.access import interceptor, strangers
from switchgear.access import pki as authority
from switchgear.access.audit import AuditLog
from switchgear.access.pki import Pki
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import (
    FailedPrecondition,
    PermissionDenied,
    Reason,
    SwitchgearError,
    Unauthenticated,
    Unavailable,
)
from switchgear.core.identity import Role
from switchgear.core.tls import TlsFiles
from switchgear.store.database import Database
from switchgear.store.holder import Candidate
from switchgear.v1 import access_service_pb2 as pb
from switchgear.v1 import access_service_pb2_grpc as pb_grpc
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc

CORDON = "switchgear.v1.FleetService/CordonNode"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time_ns())  # TLS reads the machine's own clock


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: what differs between databases is the store's, and tested there."""
    return sqlite_database


@pytest.fixture
async def world(database: Database, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with serving(database, tmp_path / "pki", clock=clock) as world:
        yield world


async def refused(call: Awaitable[Any]) -> SwitchgearError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc.from_rpc_error(caught.value)


def get(channel: grpc.aio.Channel, **options: Any) -> Awaitable[fleet_pb.Node]:
    stub: Any = fleet_grpc.FleetServiceStub(channel)
    call: Awaitable[fleet_pb.Node] = stub.GetNode(fleet_pb.GetNodeRequest(name="nodes/a"), timeout=10, **options)
    return call


def cordon(channel: grpc.aio.Channel, node: str = "nodes/a", **options: Any) -> Awaitable[fleet_pb.Node]:
    stub: Any = fleet_grpc.FleetServiceStub(channel)
    request = fleet_pb.CordonNodeRequest(name=node, reason="test", actor="user:somebody-else")
    call: Awaitable[fleet_pb.Node] = stub.CordonNode(request, timeout=10, **options)
    return call


async def test_a_call_without_a_token_is_refused_and_audited(world: World) -> None:
    async with world.channel() as channel:
        error = await refused(cordon(channel))
    assert isinstance(error, Unauthenticated)
    assert "SWITCHGEAR_TOKEN" in error.message
    (entry,) = [entry for entry in await world.audit() if entry.method == CORDON]
    assert (entry.actor, entry.outcome, entry.peer, entry.count) == ("", "UNAUTHENTICATED", "127.0.0.1", 1)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic sgt_0123456789abcdef_" + 43 * "A",
        "Bearer sgt_0123456789abcdef_" + 43 * "A",
    ],
)
async def test_a_wrong_token_is_refused_and_audited(world: World, header: str) -> None:
    async with world.channel() as channel:
        error = await refused(get(channel, metadata=(("authorization", header),)))
    assert isinstance(error, Unauthenticated)
    assert [entry.outcome for entry in await world.audit()] == ["UNAUTHENTICATED"]


async def test_the_right_id_with_the_wrong_secret_is_unknown(world: World) -> None:
    token = await world.token("ann", Role.ADMIN)
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    async with world.channel(forged) as channel:
        assert "unknown" in (await refused(get(channel))).message


async def test_an_expired_token_is_refused(world: World, clock: ManualClock) -> None:
    token = await world.token("ann", Role.ADMIN, days=1)
    async with world.channel(token) as channel:
        await get(channel)
        clock.advance(86400)
        assert "expired" in (await refused(get(channel))).message


async def test_a_revoked_token_is_refused_within_a_second(world: World, clock: ManualClock) -> None:
    token = await world.token("ann", Role.ADMIN)
    admin = await world.token("root", Role.ADMIN)
    async with world.channel(token) as channel, world.channel(admin) as other:
        await get(channel)
        access: Any = pb_grpc.AccessServiceStub(other)
        revoked = await access.RevokeToken(pb.RevokeTokenRequest(name=f"tokens/{token.split('_')[1]}"))
        assert revoked.HasField("revoke_time")
        clock.advance(1)
        assert "revoked" in (await refused(get(channel))).message


def watch(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall[Any, fleet_pb.WatchNodesResponse]:
    stub: Any = fleet_grpc.FleetServiceStub(channel)
    call: grpc.aio.UnaryStreamCall[Any, Any] = stub.WatchNodes(fleet_pb.WatchNodesRequest(), timeout=10)
    return call


async def revoke(world: World, token: str) -> None:
    async with world.channel(await world.token("root", Role.ADMIN)) as channel:
        access: Any = pb_grpc.AccessServiceStub(channel)
        await access.RevokeToken(pb.RevokeTokenRequest(name=f"tokens/{token.split('_')[1]}"))


@pytest.mark.parametrize("why", ["revoked", "expired"])
async def test_an_open_stream_of_a_token_that_is_not_good_any_more_ends_although_it_is_silent(
    world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(interceptor, "RECHECK_S", 0.01)
    token = await world.token("ann", Role.VIEWER, days=1)
    async with world.channel(token) as channel:
        call = watch(channel)
        assert (await call.read()).node.actor == "user:ann"
        if why == "revoked":
            await revoke(world, token)
        clock.advance(1 if why == "revoked" else 86400)
        error = await refused(call.read())
    assert (type(error), why in error.message) == (Unauthenticated, True)
    entry = next(entry for entry in await world.audit() if entry.method.endswith("WatchNodes"))
    assert (entry.actor, entry.outcome) == ("user:ann", "UNAUTHENTICATED")


async def test_no_answer_goes_out_to_a_token_that_was_revoked(
    world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "RECHECK_S", 3600)
    token = await world.token("ann", Role.VIEWER)
    async with world.channel(token) as channel:
        call = watch(channel)
        await call.read()
        world.news.put_nowait(7)
        assert (await call.read()).revision == 7
        await revoke(world, token)
        clock.advance(1)
        world.news.put_nowait(8)
        assert "revoked" in (await refused(call.read())).message


async def test_a_stream_of_a_good_token_goes_on_and_ends_with_its_caller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "RECHECK_S", 0.001)
    async with world.channel(await world.token("ann", Role.VIEWER)) as channel:
        call = watch(channel)
        await call.read()
        for number in range(20):
            await asyncio.sleep(0.002)
            world.news.put_nowait(number + 1)
            assert (await call.read()).revision == number + 1
    async with asyncio.timeout(10):
        while world.news._getters:  # type: ignore[attr-defined]  # noqa: ASYNC110 - the handler waits there
            await asyncio.sleep(0.01)


async def test_a_new_token_is_good_at_once_although_others_are_remembered(world: World) -> None:
    for user in ("ann", "bob"):
        async with world.channel(await world.token(user, Role.VIEWER)) as channel:
            assert (await get(channel)).actor == f"user:{user}"


async def test_a_viewer_reads_and_changes_nothing(world: World) -> None:
    async with world.channel(await world.token("eve", Role.VIEWER)) as channel:
        await get(channel)
        error = await refused(cordon(channel))
    assert (type(error), error.reason) == (PermissionDenied, Reason.ROLE_TOO_LOW)
    assert "operator" in error.message
    (entry,) = await world.audit()
    assert (entry.actor, entry.role, entry.outcome) == ("user:eve", pb.VIEWER, "PERMISSION_DENIED")
    assert entry.resource == "nodes/a"


async def test_a_change_is_recorded_under_the_name_of_the_token(world: World) -> None:
    async with world.channel(await world.token("ann", Role.OPERATOR)) as channel:
        node = await cordon(channel, metadata=(("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),))
        assert node.actor == "user:ann"
        access: Any = pb_grpc.AccessServiceStub(channel)
        assert isinstance(await refused(access.ListAuditEntries(pb.ListAuditEntriesRequest())), PermissionDenied)
    entry = (await world.audit())[-1]
    assert (entry.actor, entry.role, entry.method) == ("user:ann", pb.OPERATOR, CORDON)
    assert (entry.resource, entry.outcome, entry.trace_id) == ("nodes/a", "OK", "ab" * 16)
    assert entry.peer.startswith("127.0.0.1:")


async def test_a_change_that_failed_is_recorded_too(world: World) -> None:
    async with world.channel(await world.token("ann", Role.OPERATOR)) as channel:
        await refused(cordon(channel, "nodes/broken"))
    (entry,) = await world.audit()
    assert (entry.outcome, entry.resource) == ("INTERNAL", "nodes/broken")


async def test_a_flood_of_refused_calls_is_one_entry_with_a_count(world: World) -> None:
    async with world.channel() as channel:
        for _ in range(50):
            await refused(get(channel))
    assert [entry.count for entry in await world.audit()] == [50]
    async with world.channel() as channel:
        await refused(get(channel))
    assert [entry.count for entry in await world.audit()] == [51]


async def test_a_foreign_certificate_is_turned_away_in_the_handshake_and_audited(
    world: World, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "GRACE_S", 0.1)
    monkeypatch.setattr(strangers, "_REST", 0)
    assert world.pki
    files = foreign_files(tmp_path / "foreign", "a", world.pki, clock.unix_ns())
    async with world.channel(files=await world.node("a", tmp_path)) as good, world.channel(files=files) as bad:
        assert isinstance(await refused(get(good)), PermissionDenied)  # let in, if not to this method
        assert isinstance(await refused(get(bad)), Unavailable)
    async with asyncio.timeout(10):
        while not (found := [e for e in await world.audit() if "our CA" in e.message]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # until the guard has asked for the connection that is gone
    assert {(entry.outcome, entry.peer, entry.actor) for entry in found} == {("UNAUTHENTICATED", "127.0.0.1", "")}


async def test_who_asks_for_health_or_for_a_method_that_nobody_has_is_no_stranger(
    database: Database, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "GRACE_S", 0)
    monkeypatch.setattr(strangers, "_REST", 0)
    authority.create(tmp_path / "pki", [], clock.unix_ns())
    pki = Pki.find(tmp_path / "pki")
    assert pki
    door = strangers.Strangers(AuditLog(database, clock), clock)
    server = rpc.Server(outermost=[door.interceptor])
    address = await server.start("127.0.0.1:0", [], door.credentials(pki))
    host, port = rpc.split_address(address)
    door.watch(port)
    async with rpc.channel(address, pki.tls_files) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    async with rpc.channel(address, pki.tls_files) as channel:
        await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
    for shape in ("unary_unary", "unary_stream", "stream_unary"):
        async with rpc.channel(address, pki.tls_files) as channel:
            call = getattr(channel, shape)("/a.Service/Method")(iter([b""]) if shape == "stream_unary" else b"")
            error = await refused(call.read() if shape == "unary_stream" else call)
            assert "no such method" in error.message
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"hello?\n")
    stranger = writer.get_extra_info("sockname")
    async with asyncio.timeout(10):
        while stranger not in door._silent:  # noqa: ASYNC110 - gRPC's threads look when they do
            await asyncio.sleep(0.01)
    writer.close()
    await server.stop(0)
    gone = list[strangers.Peer]()
    async with asyncio.timeout(10):
        while not gone:
            gone = await asyncio.to_thread(door.gone)
    assert gone == [stranger]


async def test_a_service_acts_as_the_request_says_and_people_through_it_as_themselves(world: World) -> None:
    assert world.pki
    async with world.channel(files=world.pki.tls_files) as channel:
        assert (await cordon(channel)).actor == "user:somebody-else"
        token = await world.token("ann", Role.OPERATOR)
        handed_on = (("authorization", f"Bearer {token}"), ("switchgear-peer", "192.0.2.7"))
        assert (await cordon(channel, metadata=handed_on)).actor == "user:ann"
        assert isinstance(await refused(cordon(channel, metadata=(("authorization", "Bearer x"),))), Unauthenticated)
    entries = {entry.actor: entry.peer for entry in await world.audit() if entry.outcome == "OK"}
    assert entries["user:ann"] == "192.0.2.7"
    assert entries["service:control-plane"].startswith("127.0.0.1:")


async def test_only_the_control_plane_says_for_whom_it_calls(world: World, tmp_path: Path) -> None:
    assert world.pki
    router = TlsFiles(world.pki.ca, world.pki.folder / "router.crt", world.pki.folder / "router.key")
    token = await world.token("ann", Role.OPERATOR)
    for files in (router, await world.node("a", tmp_path)):
        async with world.channel(files=files) as channel:
            await cordon(channel, metadata=(("authorization", f"Bearer {token}"), ("switchgear-peer", "192.0.2.7")))
    assert [entry.peer.partition(":")[0] for entry in await world.audit()] == ["127.0.0.1", "127.0.0.1"]


async def test_a_node_reads_and_changes_nothing(world: World, tmp_path: Path) -> None:
    async with world.channel(files=await world.node("a", tmp_path)) as channel:
        for call in (get, cordon):
            assert isinstance(await refused(call(channel)), PermissionDenied)


async def test_without_tls_everybody_is_local_and_changes_are_recorded(database: Database) -> None:
    async with serving(database, None) as world, world.channel() as channel:
        assert (await cordon(channel)).actor == "user:somebody-else"
        (entry,) = await world.audit()
        assert (entry.actor, entry.role, entry.outcome) == ("local", pb.ADMIN, "OK")


async def test_an_address_beyond_loopback_without_tls_is_refused_with_the_remedy_and_audited(
    database: Database, clock: ManualClock
) -> None:
    async with serving(database, None) as world:
        with pytest.raises(FailedPrecondition, match="switchgear init"):
            async with world.guard.running():
                await rpc.Server().start("0.0.0.0:0", [])
        (entry,) = await world.audit()
        assert (entry.outcome, "0.0.0.0" in entry.message) == ("FAILED_PRECONDITION", True)


async def test_it_is_audited_too_in_a_process_that_holds_leases(database: Database, clock: ManualClock) -> None:
    async with serving(database, None) as world:
        with pytest.raises(ExceptionGroup) as refused:
            async with world.guard.running(), Candidate(database, clock, ["services/recovery"], "one").holding():
                await rpc.Server().start("0.0.0.0:0", [])
        assert refused.group_contains(FailedPrecondition, match="switchgear init")
        database.write_under([])  # for the token that reads the log
        (entry,) = await world.audit()
        assert entry.outcome == "FAILED_PRECONDITION"


async def test_with_tls_an_address_beyond_loopback_is_served(world: World) -> None:
    server = rpc.Server([world.guard.interceptor])
    assert (await server.start("0.0.0.0:0", [], world.guard.people_credentials)).startswith("0.0.0.0:")
    await server.stop(0)


async def test_reflection_without_a_token_is_refused_and_the_log_stays_clean(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(channel: grpc.aio.Channel) -> Any:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        return await stub.ServerReflectionInfo(iter([request])).read()

    async with world.channel() as stranger, world.channel(await world.token("eve", Role.VIEWER)) as viewer:
        assert isinstance(await refused(answer(stranger)), Unauthenticated)
        assert (await answer(viewer)).list_services_response.service
    assert caplog.text == ""
