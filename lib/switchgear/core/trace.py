"""Traces (OpenTelemetry): one follows a job from its submission to its running ranks, one an incident from fault to first new step.

Off, and next to free, unless `OTEL_EXPORTER_OTLP_ENDPOINT` names a receiver and the SDK is installed. A *parent* is the text of a
W3C `traceparent`: 55 characters, or empty for none. We carry it by hand instead of with `opentelemetry-instrumentation-grpc`:
that is a beta without types, pinned to one SDK, and makes a span of every stream, of which ours live for days. Even the API is
imported only when traces are on: it reads the metadata of all that is installed, two megabytes and 50 ms in each agent and launcher.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import grpc
import grpc.aio

from switchgear.core.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, SpanKind

log = logging.getLogger(__name__)

HEADER = "traceparent"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
#: What the end of a process may take to send the last spans; a receiver that is away would hold it for ten seconds.
FLUSH_S = 2.0
Attributes = Mapping[str, str | int | float | bool]
T = TypeVar("T")


class _Ids(NamedTuple):
    trace_id: int
    span_id: int


@dataclass(slots=True)
class _State:
    on: bool = False


class _NoSpan:
    """What a block gets as its span while traces are off."""

    def is_recording(self) -> bool:
        return False


_state = _State()
_NO_SPAN = cast("Span", _NoSpan())
#: Ids that the span which begins next is to have.
_forced: ContextVar[_Ids | None] = ContextVar("span_ids", default=None)


def configure(component: str) -> None:
    """Sends this process's spans to the receiver that the environment names; nothing when it names none. Call it once, early.

    component: `service.name` becomes `switchgear-{component}`. The other variables of the SDK hold too (OTEL_TRACES_SAMPLER,
    OTEL_RESOURCE_ATTRIBUTES, ...). Spans that the receiver does not take in time are dropped: work never waits for them.
    """
    if not os.environ.get(ENDPOINT):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        log.warning("%s is set, but %s is not installed: no traces", ENDPOINT, error.name)
        return

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            forced = _forced.get()
            return forced.trace_id if forced else super().generate_trace_id()

        def generate_span_id(self) -> int:
            forced = _forced.get()
            return forced.span_id if forced else super().generate_span_id()

    attributes = {"service.name": f"switchgear-{component}", "service.version": VERSION}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False, id_generator=Ids())
    atexit.register(_flush, provider.shutdown)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _state.on = True


def _flush(shutdown: Callable[[], None]) -> None:
    sending = threading.Thread(target=shutdown, name="last-spans", daemon=True)
    sending.start()
    sending.join(FLUSH_S)


def is_on() -> bool:
    """Whether spans of this process go anywhere."""
    return _state.on


@contextmanager
def span(
    name: str, *, parent: str | None = None, kind: SpanKind | None = None, attributes: Attributes | None = None
) -> Iterator[Span]:
    """A span around the block, and the current one in it. An exception marks it as failed, but for a server's own span.

    parent: None for the current span; empty for none, which begins a new trace. kind: None for an internal one.
    """
    if not _state.on:
        yield _NO_SPAN
        return
    from opentelemetry.trace import SpanKind, get_tracer

    made = get_tracer("switchgear").start_as_current_span(
        name,
        _context(parent),
        kind or SpanKind.INTERNAL,
        attributes,
        record_exception=False,
        set_status_on_exception=kind is not SpanKind.SERVER,  # a refusal is no error of the server
    )
    with made as current_span:
        yield current_span


def record(
    name: str,
    start_ns: int,
    end_ns: int,
    *,
    parent: str = "",
    itself: str = "",
    attributes: Attributes | None = None,
    error: str = "",
) -> None:
    """A span that is over already. Times are Unix nanoseconds; error: why it failed.

    itself: for the root of a trace whose ids were given out before it ended: the parent that its children were told.
    """
    if not _state.on:
        return
    from opentelemetry.trace import StatusCode, get_tracer

    ids = _span_context(itself)
    token = _forced.set(_Ids(ids.trace_id, ids.span_id) if ids else None)
    try:
        made = get_tracer("switchgear").start_span(name, _context(parent), attributes=attributes, start_time=start_ns)
    finally:
        _forced.reset(token)
    if error:
        made.set_status(StatusCode.ERROR, error)
    made.end(max(start_ns, end_ns))


def current() -> str:
    """The current span, for others to be its children; empty when there is none."""
    if not _state.on:
        return ""
    from opentelemetry.trace import get_current_span

    return _text(get_current_span().get_span_context())


def stable(*parts: str | int) -> str:
    """The root of the trace that these parts name: the same in every process, and after every restart."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return f"00-{digest[:16].hex()}-{digest[16:24].hex()}-01"


def trace_id(parent: str) -> str:
    """The id of the trace: 32 hexadecimal digits; empty when the parent is none."""
    return parent.split("-")[1] if parent else ""


def _context(parent: str | None) -> Context | None:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return None if parent is None else TraceContextTextMapPropagator().extract({HEADER: parent}, Context())


def _span_context(parent: str) -> SpanContext | None:
    from opentelemetry.trace import get_current_span

    found = get_current_span(_context(parent)).get_span_context() if parent else None
    return found if found and found.is_valid else None


def _text(context: SpanContext) -> str:
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _with_parent(metadata: Any) -> list[tuple[str, str | bytes]]:
    """The metadata of a call that belongs to the current span."""
    kept = [(key, value) for key, value in metadata or () if key != HEADER]
    return [*kept, (HEADER, current())]


class _Async(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[T]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> T:
        if not current():
            return await continuation(client_call_details, request)
        details = grpc.aio.ClientCallDetails(
            method=client_call_details.method,
            timeout=client_call_details.timeout,
            metadata=grpc.aio.Metadata(*_with_parent(client_call_details.metadata)),
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        return await continuation(details, request)


class _Sync(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if not current():
            return continuation(client_call_details, request)
        return continuation(client_call_details._replace(metadata=_with_parent(client_call_details.metadata)), request)


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """For a channel: its unary calls tell the server the current span. None when traces are off: interceptors cost a task a call."""
    return [_Async()] if _state.on else []


def intercepted(channel: grpc.Channel) -> grpc.Channel:
    """As `client_interceptors`, for a synchronous channel."""
    return grpc.intercept_channel(channel, _Sync()) if _state.on else channel
