"""How every server and client of ours speaks gRPC, over real connections."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from switchgear.core import errors, rpc
from switchgear.core.errors import DOMAIN, Reason, SwitchgearError
from switchgear.v1 import fleet_service_pb2 as pb
from switchgear.v1 import fleet_service_pb2_grpc as pb_grpc

SERVICE = "switchgear.v1.FleetService"
ERRORS: dict[str, Exception] = {
    cls.__name__: cls("do it otherwise", Reason.BAD_FIELD, field="name")
    for cls in SwitchgearError.__subclasses__()
    if cls is not errors.NotFound
}
ERRORS["NotFound"] = errors.NotFound("nodes/gone")
ERRORS["unexpected"] = ValueError("the password is swordfish")


class Fleet(pb_grpc.FleetServiceServicer):
    """Fails as it is told to: the node's name says how."""

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.Node:  # noqa: N802
        if request.name in ERRORS:
            raise ERRORS[request.name]
        return pb.Node(name=request.name)

    async def WatchNodes(self, request: pb.WatchNodesRequest, context: Any) -> AsyncIterator[pb.WatchNodesResponse]:  # noqa: N802
        yield pb.WatchNodesResponse(revision=request.revision)
        raise errors.OutOfRange("list again", Reason.REVISION_UNKNOWN, revision=str(request.revision))


@pytest.fixture
async def server() -> AsyncIterator[rpc.Server]:
    server = rpc.Server()
    pb_grpc.add_FleetServiceServicer_to_server(Fleet(), server.grpc)
    await server.start("127.0.0.1:0", [SERVICE])
    yield server
    await server.stop(grace_s=0)


@pytest.fixture
async def channel(server: rpc.Server) -> AsyncIterator[grpc.aio.Channel]:
    async with rpc.channel(server.address) as channel:
        yield channel


async def failure_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_the_address_has_the_port_that_was_taken(server: rpc.Server, channel: grpc.aio.Channel) -> None:
    assert int(server.address.removeprefix("127.0.0.1:")) > 0
    node = await pb_grpc.FleetServiceStub(channel).GetNode(pb.GetNodeRequest(name="nodes/a"))
    assert node.name == "nodes/a"


@pytest.mark.parametrize("kind", sorted(ERRORS.keys() - {"unexpected"}))
async def test_an_error_reaches_the_client_as_it_was_raised(channel: grpc.aio.Channel, kind: str) -> None:
    raised = ERRORS[kind]
    assert isinstance(raised, SwitchgearError)
    received = rpc.from_rpc_error(
        await failure_of(pb_grpc.FleetServiceStub(channel).GetNode(pb.GetNodeRequest(name=kind)))
    )
    assert type(received) is type(raised)
    assert (received.message, received.reason, received.metadata) == (raised.message, raised.reason, raised.metadata)


async def test_a_foreign_client_finds_error_info(channel: grpc.aio.Channel) -> None:
    failure = await failure_of(pb_grpc.FleetServiceStub(channel).GetNode(pb.GetNodeRequest(name="Aborted")))
    status = status_pb2.Status.FromString(dict(failure.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("BAD_FIELD", DOMAIN, {"field": "name"})
    assert (status.code, status.message) == (failure.code().value[0], failure.details())


async def test_an_unexpected_exception_goes_to_the_log_and_not_to_the_client(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        failure = await failure_of(pb_grpc.FleetServiceStub(channel).GetNode(pb.GetNodeRequest(name="unexpected")))
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "swordfish" not in repr(failure) + str(failure.trailing_metadata())
    assert "swordfish" in caplog.text
    assert "GetNode" in caplog.text
    assert rpc.from_rpc_error(failure).reason is Reason.INTERNAL


async def test_a_stream_gives_what_it_has_and_then_its_error(channel: grpc.aio.Channel) -> None:
    call = pb_grpc.FleetServiceStub(channel).WatchNodes(pb.WatchNodesRequest(revision=7))
    assert (await call.read()).revision == 7
    error = rpc.from_rpc_error(await failure_of(call.read()))
    assert isinstance(error, errors.OutOfRange)
    assert error.metadata == {"revision": "7"}


async def test_a_service_that_this_server_has_not_is_unimplemented(channel: grpc.aio.Channel) -> None:
    failure = await failure_of(channel.unary_unary("/switchgear.v1.JobService/GetJob")(b""))
    assert failure.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_beyond_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    too_long = pb.GetNodeRequest(name="x" * (rpc.MESSAGE_BYTES_MAX + 1))
    failure = await failure_of(pb_grpc.FleetServiceStub(channel).GetNode(too_long))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_served(channel: grpc.aio.Channel, service: str) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])):
        names = {service.name for service in answer.list_services_response.service}
        assert SERVICE in names
        return
    pytest.fail("no answer")


async def test_a_port_in_use_is_refused_with_the_remedy(server: rpc.Server) -> None:
    with pytest.raises(errors.FailedPrecondition, match="choose another port") as caught:
        await rpc.Server().start(server.address, [])
    assert (caught.value.reason, caught.value.metadata) == (Reason.ADDRESS_IN_USE, {"address": server.address})


@pytest.mark.parametrize(
    "address", ["", ":0", "127.0.0.1", "127.0.0.1:", "127.0.0.1:80x", "127.0.0.1:99999", "localhost:-1"]
)
async def test_an_address_that_is_none_is_told_what_one_looks_like(address: str) -> None:
    with pytest.raises(errors.Invalid, match="write HOST:PORT") as refused:
        await rpc.Server().start(address, [])
    assert refused.value.reason is Reason.BAD_FIELD


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "example.com"])
async def test_without_tls_only_loopback_is_served(host: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match="loopback") as caught:
        await rpc.Server().start(f"{host}:0", [])
    assert caught.value.reason is Reason.INSECURE_BIND


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_loopback_has_several_names(host: str) -> None:
    rpc.require_loopback(host)


async def test_a_server_that_is_gone_is_unavailable(server: rpc.Server, channel: grpc.aio.Channel) -> None:
    await server.stop(grace_s=0)
    stub = pb_grpc.FleetServiceStub(channel)
    error = rpc.from_rpc_error(await failure_of(stub.GetNode(pb.GetNodeRequest(name="nodes/a"))))
    assert isinstance(error, errors.Unavailable)
    assert error.reason is Reason.SERVER_UNREACHABLE


async def test_a_client_finds_a_restarted_server_again(server: rpc.Server, channel: grpc.aio.Channel) -> None:
    stub = pb_grpc.FleetServiceStub(channel)
    await stub.GetNode(pb.GetNodeRequest(name="nodes/a"))
    await server.stop(grace_s=0)
    again = rpc.Server()
    pb_grpc.add_FleetServiceServicer_to_server(Fleet(), again.grpc)
    await again.start(server.address, [SERVICE])
    try:
        node = await stub.GetNode(pb.GetNodeRequest(name="nodes/b"), wait_for_ready=True, timeout=10)
        assert node.name == "nodes/b"
    finally:
        await again.stop(grace_s=0)
