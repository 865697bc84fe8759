"""How a node joins, and that it speaks for itself alone: the real services behind the guard, over mutual TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from access_world import World, request_of, serving
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from switchgear.agent.enroll import join, server_of
from switchgear.collector import main as collector
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    Invalid,
    PermissionDenied,
    Reason,
    SwitchgearError,
    Unavailable,
)
from switchgear.core.identity import Role
from switchgear.core.joining import Invitation
from switchgear.core.tls import TlsFiles
from switchgear.recovery import main as recovery
from switchgear.scheduler import main as scheduler
from switchgear.store.database import Database
from switchgear.v1 import access_service_pb2 as pb
from switchgear.v1 import access_service_pb2_grpc as pb_grpc
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1alpha import launcher_service_pb2 as launcher_pb
from switchgear.v1alpha import launcher_service_pb2_grpc as launcher_grpc
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc
from switchgear.v1alpha import telemetry_service_pb2 as telemetry_pb
from switchgear.v1alpha import telemetry_service_pb2_grpc as telemetry_grpc


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    return sqlite_database


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock(time.time_ns())
    services = [
        collector.build(database, clock),
        scheduler.build(database, clock, scheduler.SchedulerSettings(state_dir=tmp_path)),
        recovery.build(database, clock),
    ]
    async with serving(database, tmp_path / "pki", services, clock) as world:
        yield world


async def refused(call: Awaitable[Any]) -> SwitchgearError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc.from_rpc_error(caught.value)


async def invitation(world: World, node: str = "", request_id: str = "") -> str:
    async with world.channel(await world.token("root", Role.ADMIN)) as channel:
        stub: Any = pb_grpc.AccessServiceStub(channel)
        made = await stub.CreateJoinToken(pb.CreateJoinTokenRequest(node=node, request_id=request_id))
        return str(made.join_token)


async def test_a_node_joins_with_its_token_and_no_other_with_the_same(world: World, tmp_path: Path) -> None:
    text = await invitation(world, "nodes/gpu-01")
    files = await asyncio.to_thread(join, text, "gpu-01", tmp_path / "agent" / "tls")
    assert files.complete
    assert files.key.stat().st_mode & 0o077 == 0
    assert server_of(files.folder) == world.machines
    with pytest.raises(PermissionDenied, match="used already") as replayed:
        await asyncio.to_thread(join, text, "gpu-01", tmp_path / "thief")
    assert replayed.value.reason is Reason.JOIN_TOKEN_UNUSABLE
    outcomes = [
        (entry.actor, entry.outcome, entry.resource) for entry in await world.audit() if "Enroll" in entry.method
    ]
    assert outcomes == [("", "PERMISSION_DENIED", "nodes/gpu-01"), ("node:gpu-01", "OK", "nodes/gpu-01")]
    async with rpc.channel(world.machines, files.tls) as channel:
        call = agent_hello(channel, "nodes/gpu-01")
        assert not isinstance(await first_answer(call), PermissionDenied)


async def test_a_failed_request_leaves_the_join_token_good(world: World, tmp_path: Path) -> None:
    text = await invitation(world)
    async with world.channel() as channel:
        stub: Any = pb_grpc.AccessServiceStub(channel)
        request = pb.EnrollNodeRequest(secret=Invitation.decode(text).secret, node="nodes/a", certificate_request=b"x")
        assert isinstance(await refused(stub.EnrollNode(request)), Invalid)
        request.certificate_request = request_of(ec.generate_private_key(ec.SECP256R1()))
        assert (await stub.EnrollNode(request)).certificate.startswith("-----BEGIN")


async def test_an_agent_believes_nobody_but_the_ca_of_its_token(world: World, tmp_path: Path) -> None:
    real = Invitation.decode(await invitation(world))
    async with serving(world.database, tmp_path / "other", clock=world.clock) as impostor:
        diverted = Invitation(real.secret, impostor.people, real.ca).encode()
        with pytest.raises(SwitchgearError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(join, diverted, "a", tmp_path / "agent")
    await asyncio.to_thread(join, real.encode(), "a", tmp_path / "agent")


async def test_nobody_takes_a_node_for_a_service(world: World, tmp_path: Path) -> None:
    files = await world.node("gpu-01", tmp_path)
    assert files.certificate
    assert files.key
    assert world.pki
    credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.certificate.read_bytes())])
    server = rpc.Server()
    address = await server.start("127.0.0.1:0", [], credentials)
    try:
        for believer in (TlsFiles(world.pki.ca), world.pki.tls_files):
            async with rpc.channel(address, believer) as channel:
                error = await refused(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()))
                assert isinstance(error, Unavailable)
    finally:
        await server.stop(0)


@pytest.mark.parametrize("owner", ["router", "metrics"])
async def test_the_certificates_of_router_and_prometheus_cannot_act_for_the_control_plane(
    world: World, owner: str
) -> None:
    assert world.pki
    folder = world.pki.folder
    files = TlsFiles(world.pki.ca, folder / f"{owner}.crt", folder / f"{owner}.key")
    async with rpc.channel(world.machines, files) as channel:
        fleet: Any = fleet_grpc.FleetServiceStub(channel)
        for call in (
            fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/a")),
            fleet.ListNodes(fleet_pb.ListNodesRequest()),
        ):
            error = await refused(call)
            assert isinstance(error, PermissionDenied)
            assert f"service:{owner}" in error.message


async def test_a_secret_is_shown_once_also_to_a_repeated_request(world: World) -> None:
    await invitation(world, request_id="one")
    async with world.channel(await world.token("root", Role.ADMIN)) as channel:
        stub: Any = pb_grpc.AccessServiceStub(channel)
        assert isinstance(
            await refused(stub.CreateJoinToken(pb.CreateJoinTokenRequest(request_id="one"))), AlreadyExists
        )
        request = pb.CreateTokenRequest(user="ann", role=pb.VIEWER, request_id="two")
        made = await stub.CreateToken(request)
        assert isinstance(await refused(stub.CreateToken(request)), AlreadyExists)
        listed = (await stub.ListTokens(pb.ListTokensRequest())).tokens
        assert listed[0].user == "ann"
        assert len([token for token in listed if token.user == "ann"]) == 1
    async with world.channel(made.secret) as channel, world.database.read() as session:
        raw = await session.connection()
        stored = (await raw.exec_driver_sql("SELECT response FROM requests")).all()
        assert made.secret.encode() not in b"".join(bytes(row[0]) for row in stored)


@pytest.mark.parametrize(
    "request_",
    [
        pb.CreateTokenRequest(user="Ann", role=pb.VIEWER),
        pb.CreateTokenRequest(user="ann"),
        pb.CreateTokenRequest(user="ann", role=pb.ADMIN, valid_days=367),
        pb.CreateTokenRequest(user="ann", role=pb.ADMIN, valid_days=-1),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(world: World, request_: pb.CreateTokenRequest) -> None:
    async with world.channel(await world.token("root", Role.ADMIN)) as channel:
        stub: Any = pb_grpc.AccessServiceStub(channel)
        assert isinstance(await refused(stub.CreateToken(request_)), Invalid)


async def test_without_tls_there_are_no_tokens_and_the_remedy_is_told(database: Database) -> None:
    async with serving(database, None) as world, world.channel() as channel:
        stub: Any = pb_grpc.AccessServiceStub(channel)
        for call in (
            stub.CreateToken(pb.CreateTokenRequest(user="ann", role=pb.VIEWER)),
            stub.CreateJoinToken(pb.CreateJoinTokenRequest()),
        ):
            error = await refused(call)
            assert isinstance(error, FailedPrecondition)
            assert "switchgear init" in error.message


def telemetry_hello(channel: grpc.aio.Channel, node: str) -> Any:
    hello = telemetry_pb.AgentHello(node=node, boot_id="b", epoch="e", agent_version="1")
    begin: Any = telemetry_grpc.TelemetryServiceStub(channel).Stream
    return begin(iter([telemetry_pb.AgentMessage(hello=hello)]))


def agent_hello(channel: grpc.aio.Channel, node: str) -> Any:
    hello = agent_pb.NodeAgentHello(node=fleet_pb.Node(name=node, address="127.0.0.1"), instance_id="i")
    begin: Any = agent_grpc.NodeAgentServiceStub(channel).Connect
    return begin(iter([agent_pb.NodeAgentReport(hello=hello)]))


def agent_hello_of_another_behind_its_own(channel: grpc.aio.Channel, node: str) -> Any:
    reports = [
        agent_pb.NodeAgentReport(
            hello=agent_pb.NodeAgentHello(node=fleet_pb.Node(name=name, address="127.0.0.1"), instance_id="i")
        )
        for name in ("nodes/a", node)
    ]
    begin: Any = agent_grpc.NodeAgentServiceStub(channel).Connect
    return begin(iter(reports))


def launcher_hello(channel: grpc.aio.Channel, node: str) -> Any:
    hello = launcher_pb.LauncherHello(job="jobs/j", node=node, placement_epoch=1, launcher_id="l")
    begin: Any = launcher_grpc.LauncherServiceStub(channel).Connect
    return begin(iter([launcher_pb.LauncherReport(hello=hello)]))


async def first_answer(call: Any) -> SwitchgearError | None:
    """How the stream begins: an error, or anything else."""
    try:
        async with asyncio.timeout(1):
            await call.read()
    except TimeoutError:
        call.cancel()
    except grpc.aio.AioRpcError as error:
        return rpc.from_rpc_error(error)
    return None


@pytest.mark.parametrize("hello", [telemetry_hello, agent_hello, launcher_hello])
async def test_a_node_that_speaks_for_another_is_refused_and_audited(world: World, tmp_path: Path, hello: Any) -> None:
    async with world.channel(files=await world.node("a", tmp_path)) as channel:
        error = await first_answer(hello(channel, "nodes/b"))
    assert isinstance(error, PermissionDenied)
    assert error.reason is Reason.NOT_YOUR_NODE
    (entry,) = await world.audit()
    assert (entry.actor, entry.outcome) == ("node:a", "PERMISSION_DENIED")
    assert "nodes/b" in entry.message


async def test_a_later_message_does_not_name_another_node_either(world: World, tmp_path: Path) -> None:
    async with world.channel(files=await world.node("a", tmp_path)) as channel:
        error = await first_answer(agent_hello_of_another_behind_its_own(channel, "nodes/b"))
    assert isinstance(error, Invalid)
    assert "speaks for nodes/a" in error.message


@pytest.mark.parametrize("hello", [telemetry_hello, agent_hello, launcher_hello])
async def test_a_person_speaks_for_no_node(world: World, hello: Any) -> None:
    async with world.channel(await world.token("root", Role.ADMIN)) as channel:
        assert isinstance(await first_answer(hello(channel, "nodes/a")), PermissionDenied)
