"""gRPC for people at one address: what the gateway does not have itself it hands on, unread, to the service that has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from switchgear.access.interceptor import PEER_HEADER
from switchgear.core.errors import Reason, Unavailable
from switchgear.core.service import Endpoints
from switchgear.gateway.bindings import CONTRACT

#: Of the caller's metadata only these are for the service behind: who calls, and in which trace.
FORWARDED = ("authorization", "traceparent", "tracestate")
_DETAILS = "grpc-status-details-bin"
_Context = grpc.aio.ServicerContext[bytes, bytes]


class Forwarding:
    """Hands on the calls of people and programs to the services at the endpoints of these names.

    What only our own processes say to each other (v1alpha, but for methods with a REST form) is not handed on.
    """

    def __init__(self, endpoints: Collection[str]) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._methods = {
            service.full_name: {method.name: (endpoint, method) for method in service.methods if _for_people(method)}
            for file, endpoint in CONTRACT
            if endpoint in endpoints
            for service in file.services_by_name.values()
        }

    @property
    def service_names(self) -> Sequence[str]:
        return tuple(self._methods)

    def register(self, server: grpc.aio.Server) -> None:
        for service, methods in self._methods.items():
            handlers = {
                name: self._handler(endpoint, f"/{service}/{name}", streaming=method.server_streaming)
                for name, (endpoint, method) in methods.items()
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def open(self, endpoints: Endpoints, stack: AsyncExitStack) -> None:
        """Connects to the services; until then, and once the stack has ended, calls are answered with UNAVAILABLE."""
        for name in {endpoint for methods in self._methods.values() for endpoint, _ in methods.values()}:
            self._channels[name] = await stack.enter_async_context(endpoints.channel(name))
        stack.callback(self._channels.clear)

    def _handler(self, endpoint: str, path: str, *, streaming: bool) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def unary(request: bytes, context: _Context) -> bytes:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel(endpoint).unary_unary(path)
            try:
                answer: bytes = await call(request, timeout=context.time_remaining(), metadata=_metadata(context))
            except grpc.aio.AioRpcError as error:
                await _pass_on(context, endpoint, error)
            return answer

        async def stream(request: bytes, context: _Context) -> AsyncIterator[bytes]:
            method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel(endpoint).unary_stream(path)
            call = method(request, timeout=context.time_remaining(), metadata=_metadata(context))
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError as error:
                await _pass_on(context, endpoint, error)
            finally:
                call.cancel()

        # Without serializers messages stay the bytes that they are.
        if streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if channel := self._channels.get(endpoint):
            return channel
        raise Unavailable(
            "the gateway is starting; call again in a moment", Reason.SERVER_UNREACHABLE, service="gateway"
        )


def _for_people(method: MethodDescriptor) -> bool:
    if method.client_streaming:
        return False
    return method.containing_service.file.package == "switchgear.v1" or method.GetOptions().HasExtension(
        annotations_pb2.http
    )


def _metadata(context: _Context) -> list[tuple[str, Any]]:
    given = [(key, value) for key, value in context.invocation_metadata() or () if key in FORWARDED]
    return [*given, (PEER_HEADER, context.peer())]


async def _pass_on(context: _Context, endpoint: str, error: grpc.aio.AioRpcError) -> NoReturn:
    """Ends the call as the service ended it, with its details; raises Unavailable when the service was not reached."""
    trailing = [(key, value) for key, value in error.trailing_metadata() or () if key == _DETAILS]
    if error.code() is grpc.StatusCode.UNAVAILABLE and not trailing:
        raise Unavailable(
            f"the {endpoint} does not answer the gateway; start it, or wait until it is back",
            Reason.SERVER_UNREACHABLE,
            service=endpoint,
        ) from error
    await context.abort(error.code(), error.details() or "", tuple(trailing))
