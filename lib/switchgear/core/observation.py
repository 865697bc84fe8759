"""What a gRPC server of ours tells about each call: metrics, a span, and one line a change."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import grpc
import grpc.aio
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from switchgear.core import identity, trace
from switchgear.core.metrics import ServerMetrics

log = logging.getLogger(__name__)

#: Methods that change nothing, or are called by machines all the time (`Export` of OTLP, `IsActive` of KEDA); their answers are not worth
#: a line each.
_QUIET = ("Get", "List", "Watch", "Export", "IsActive", "StreamIsActive")
#: Codes for which the server is to blame, not the request.
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Observation(grpc.aio.ServerInterceptor):
    """For `rpc.Server(outermost=...)`: it sees the code that the client gets.

    Methods that nobody registered are counted as one, since their names are the clients' choice.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics = ServerMetrics(registry)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        if path.startswith("/grpc."):  # health and reflection
            return handler  # type: ignore[no-any-return]
        if handler is None:
            self._metrics.handled.labels("unknown", "unknown", "UNIMPLEMENTED").inc()
            return None
        service, _, method = path[1:].rpartition("/")
        codecs = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            stream = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                with self._counted(service, method, context):
                    async for response in stream(request, context):
                        yield response

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(streaming, *codecs)
        unary = handler.stream_unary if handler.request_streaming else handler.unary_unary
        call = self._counted if handler.request_streaming else self._told

        async def one_answer(request: Any, context: Any) -> Any:
            with call(service, method, context):
                return await unary(request, context)

        make_unary = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make_unary(one_answer, *codecs)

    @contextmanager
    def _told(self, service: str, method: str, context: Any) -> Iterator[None]:
        """A call that ends soon: its duration is a latency, and its end is one line when it may have changed something."""
        start_s = time.perf_counter()
        code = "OK"
        with _span(service, method, context) as span:
            try:
                with self._counted(service, method, context):
                    yield
            except BaseException as error:
                code = _code_of(error, context)
                raise
            finally:
                took_s = time.perf_counter() - start_s
                self._metrics.handling.labels(service, method).observe(took_s)
                span.set_attribute("rpc.grpc.status_code", code)
                if code in _SERVER_ERRORS:
                    span.set_status(StatusCode.ERROR, code)
                if not method.startswith(_QUIET):
                    told = {"method": f"{service}/{method}", "actor": identity.current().actor, "code": code}
                    log.info("rpc", extra={**told, "duration_ms": round(took_s * 1e3, 3)})

    @contextmanager
    def _counted(self, service: str, method: str, context: Any) -> Iterator[None]:
        self._metrics.started.labels(service, method).inc()
        code = "OK"
        try:
            yield
        except BaseException as error:
            code = _code_of(error, context)
            raise
        finally:
            self._metrics.handled.labels(service, method, code).inc()


def _span(service: str, method: str, context: Any) -> AbstractContextManager[Span]:
    """A span of the call, below that of its client. Streams have none: ours live as long as what is at their other end."""
    if not trace.is_on():
        return nullcontext(INVALID_SPAN)
    told: dict[str, Any] = dict(context.invocation_metadata() or ())
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    return trace.span(
        f"{service}/{method}", parent=told.get(trace.HEADER, ""), kind=SpanKind.SERVER, attributes=attributes
    )


def _code_of(error: BaseException, context: Any) -> str:
    """Errors have been translated by the time that they come here: what is left is an abort or a cancellation."""
    if isinstance(error, grpc.aio.AbortError):
        code = context.code()  # as it was given to `abort`
        return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
    if isinstance(error, Exception):
        return "UNKNOWN"
    left_s = context.time_remaining()
    return "DEADLINE_EXCEEDED" if left_s is not None and left_s <= 0 else "CANCELLED"
