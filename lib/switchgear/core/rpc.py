"""gRPC as every process of ours speaks it: server with health, reflection and one error translation; channels with keep-alive.

Nothing here listens beyond loopback without TLS; who may call what is for an interceptor to say.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from switchgear.core import errors, trace
from switchgear.core.errors import DOMAIN, Reason, SwitchgearError
from switchgear.core.tls import TlsFiles

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
_DETAILS = "grpc-status-details-bin"
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a share of the traffic
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # It answers each message with a ping to guess the bandwidth, which for a small message a second is half of all cost. Without it 64 KiB
    # of a stream are under way at once.
    ("grpc.http2.bdp_probe", 0),
    # A restarted control plane is found again in a moment, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Despite its name also the time that one attempt may take, and a busy server accepts late.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_CHANNEL_OPTIONS = [*_OPTIONS, ("grpc.enable_http_proxy", 0)]
_BY_CODE: dict[grpc.StatusCode, type[SwitchgearError]] = {
    grpc.StatusCode[cls.code]: cls
    for cls in (
        errors.Invalid,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.OutOfRange,
        errors.ResourceExhausted,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.Unavailable,
    )
}


def to_status(error: SwitchgearError) -> status_pb2.Status:
    """The error as `google.rpc.Status` with its `ErrorInfo`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=error.message, details=[detail])


def to_error_dict(error: SwitchgearError) -> dict[str, object]:
    """The error as a JSON object for programs."""
    return {"status": error.code, "reason": error.reason.value, "message": error.message, "metadata": error.metadata}


class FailedCall(Protocol):
    """What `grpc.aio.AioRpcError` and the synchronous `grpc.RpcError` have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Any: ...


def from_rpc_error(error: FailedCall) -> SwitchgearError:
    """What the server raised, as the class it raised; a failed connection becomes Unavailable."""
    message, reason, metadata = error.details() or str(error.code()), Reason.INTERNAL, dict[str, str]()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.reason in Reason.__members__:
                    reason, metadata = Reason(info.reason), dict(info.metadata)
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return errors.NotFound(metadata.get("name", ""), message)
    if error.code() is grpc.StatusCode.UNAVAILABLE and reason is Reason.INTERNAL:
        reason = Reason.SERVER_UNREACHABLE
    cls = _BY_CODE.get(error.code(), SwitchgearError)
    return cls(message, reason, **{k: v for k, v in metadata.items() if k not in ("message", "reason")})


async def _abort(context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception) -> None:
    if isinstance(error, NotImplementedError):  # what a generated method of an older server raises
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, f"this server does not know {method}; it is older than its client"
        )
    if not isinstance(error, SwitchgearError):
        log.exception("internal error in %s", method, exc_info=error)
        error = _internal_error()
    await context.abort(grpc.StatusCode[error.code], error.message, ((_DETAILS, to_status(error).SerializeToString()),))


def _internal_error() -> SwitchgearError:
    message = "internal error; the server's log has the cause"
    if trace_id := trace.trace_id(trace.current()):
        return SwitchgearError(f"{message} under trace {trace_id}", Reason.INTERNAL, trace_id=trace_id)
    return SwitchgearError(message, Reason.INTERNAL)


class _ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a handler raises into a status with ErrorInfo; an unexpected exception is logged and becomes INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        # Of the foreign handlers only this is no async generator although it streams.
        if handler is None or method == "/grpc.health.v1.Health/Watch":
            return handler
        if handler.response_streaming:
            inner_stream = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    async for response in inner_stream(request, context):  # type: ignore[union-attr,misc]
                        yield response
                except grpc.aio.AbortError:
                    raise
                except Exception as error:
                    await _abort(context, method, error)

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(streaming, handler.request_deserializer, handler.response_serializer)
        inner_unary = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await inner_unary(request, context)  # type: ignore[misc]
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                return await _abort(context, method, error)

        make_unary = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make_unary(unary, handler.request_deserializer, handler.response_serializer)


class Server:
    """A gRPC server with our habits. Register servicers on `grpc`, then `start`."""

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        *,
        outermost: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """interceptors: see each call before its handler; what they raise is translated like a handler's errors.

        outermost: see each call before those, and the code that the client gets.
        """
        self.grpc = grpc.aio.server(interceptors=[*outermost, _ErrorInterceptor(), *interceptors], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self.address = ""

    def also_listen(self, address: str, credentials: grpc.ServerCredentials) -> str:
        """A second address with credentials of its own, as `start` has it; call it before `start`."""
        return self._bind(address, credentials)

    async def start(
        self, address: str, services: Sequence[str], credentials: grpc.ServerCredentials | None = None
    ) -> str:
        """Binds, serves, and returns the address with the port that was taken.

        services: full names of the registered services, for health and reflection. credentials: of TLS; None: plain.
        Raises FailedPrecondition when the port is taken, or the address is beyond loopback and there is no TLS.
        """
        self.address = self._bind(address, credentials)
        reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), self.grpc)
        await self.grpc.start()
        for service in ("", *services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return self.address

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        host, port = split_address(address)
        if credentials is None:
            require_loopback(host)
        require_free_port(host, port)
        if credentials is None:
            return f"{host}:{self.grpc.add_insecure_port(address)}"
        return f"{host}:{self.grpc.add_secure_port(address, credentials)}"

    async def stop(self, grace_s: float = 1.0) -> None:
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`. Raises Invalid when it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise errors.Invalid(
            f"{address!r} is no address; write HOST:PORT, for example 127.0.0.1:7070",
            Reason.BAD_FIELD,
            value=address[:100],
        )
    return host, int(port)


def dialable(address: str) -> str:
    """Where this machine reaches a server that listens at `address`: one on all addresses is on loopback too."""
    host, port = split_address(address)
    return f"{({'0.0.0.0': '127.0.0.1', '[::]': '[::1]', '::': '[::1]'}).get(host, host)}:{port}"


def require_loopback(host: str) -> None:
    """Raises FailedPrecondition unless `host` is a loopback address or `localhost`: what may be listened on without TLS."""
    if not is_loopback(host):
        raise errors.FailedPrecondition(
            f"refusing to listen on {host!r}: without TLS only loopback is allowed; use 127.0.0.1, or make certificates and "
            "tokens with `switchgear init --host NAME`, the name by which others reach this machine",
            Reason.INSECURE_BIND,
            host=host,
        )


def is_loopback(host: str) -> bool:
    """Whether the host is `localhost` or a loopback address; another name never is, whatever it resolves to."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_free_port(host: str, port: int) -> None:
    """Raises FailedPrecondition when somebody listens on the port already; port 0 is always free."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise errors.FailedPrecondition(
                f"cannot listen on {host}:{port} ({error.strerror}); stop what uses it or choose another port (0 takes a free one)",
                Reason.ADDRESS_IN_USE,
                address=f"{host}:{port}",
            ) from error


def sync_channel(address: str, tls: TlsFiles | None = None, token: str = "") -> grpc.Channel:
    """As `channel`, for a command that makes a few calls and ends. token: sent with each call, and never without TLS."""
    if tls is None:
        return trace.intercepted(grpc.insecure_channel(target(address), options=_CHANNEL_OPTIONS))
    credentials = tls.channel_credentials()
    if token:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return trace.intercepted(grpc.secure_channel(address, credentials, options=_CHANNEL_OPTIONS))


def channel(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """A channel to one of our servers; it reconnects by itself. tls: None for a server on loopback without TLS.

    Without TLS the address may be several, `IP:PORT,IP:PORT`: of one that acts and others that stand by, who do not listen. With TLS
    that is one name of several addresses, since a certificate is for a name.
    """
    interceptors = trace.client_interceptors()
    if tls is None:
        return grpc.aio.insecure_channel(target(address), options=_CHANNEL_OPTIONS, interceptors=interceptors)
    return grpc.aio.secure_channel(address, tls.channel_credentials(), _CHANNEL_OPTIONS, interceptors=interceptors)


def target(address: str) -> str:
    """What gRPC dials for HOST:PORT, or for several IP:PORT with commas between them, without TLS.

    Raises Invalid for several of which one is no IPv4 address and port: gRPC would fail with each call.
    """
    if "," not in address:
        return address
    for part in address.split(","):
        host, _ = split_address(part)
        if not _is_ipv4(host):
            raise errors.Invalid(
                f"{part!r}: of several addresses each must be IPv4, as in 10.0.0.1:7070,10.0.0.2:7070; write the host's address, or "
                "one name that has several addresses",
                Reason.BAD_FIELD,
                value=part[:100],
            )
    return f"ipv4:{address}"


def _is_ipv4(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return False
