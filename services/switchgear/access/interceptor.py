"""Stands before every handler: who calls, may they, and what is written down about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from opentelemetry import trace

from switchgear.access import policy
from switchgear.access.audit import AuditLog
from switchgear.access.callers import Callers, of_uri, peer_uris
from switchgear.access.model import Entry
from switchgear.access.strangers import split_peer
from switchgear.core import identity
from switchgear.core.clock import Clock
from switchgear.core.errors import PermissionDenied, Reason, SwitchgearError, Unauthenticated
from switchgear.core.identity import NOBODY, Identity, Kind

#: Metadata in which the gateway says for whom it calls; believed under the control plane's certificate alone.
PEER_HEADER = "switchgear-peer"
#: So often somebody with a token is asked for it again while a stream is open and silent.
RECHECK_S = 1.0
_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_CONTROL_PLANE = Identity(Kind.SERVICE, policy.CONTROL_PLANE)
Context = grpc.aio.ServicerContext[Any, Any]


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Refuses with UNAUTHENTICATED or PERMISSION_DENIED, tells the handler who calls (`core.identity.current`), and writes to the
    audit log what changed something and what was refused.

    refused: called with the reason of each refusal.
    """

    def __init__(
        self,
        callers: Callers,
        log: AuditLog,
        clock: Clock,
        refused: Callable[[Reason], None],
    ) -> None:
        self._callers = callers
        self._log = log
        self._clock = clock
        self._refused = refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).removeprefix("/")
        if handler is None or method.startswith("grpc.health."):
            return handler  # load balancers ask for health, and nothing else is in it
        # What has no deserializer is handed on to another process, which writes down what it does.
        passed_on = handler.request_deserializer is None
        if handler.response_streaming:
            return self._streaming(method, handler, passed_on=passed_on)
        return self._unary(method, handler, passed_on=passed_on)

    def _streaming(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any], *, passed_on: bool
    ) -> grpc.RpcMethodHandler[Any, Any]:
        inner: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
            caller = await self._admit(method, request, context, passed_on=passed_on)
            responses: AsyncIterator[Any] = inner(request, context)
            if caller.kind is Kind.USER:
                responses = self._while_known(context, responses)
            try:
                async for response in responses:
                    yield response
            except (
                PermissionDenied,
                Unauthenticated,
            ) as error:  # a node that speaks for another; a token that was revoked
                self._refuse(self._entry(caller, method, context, error=error), error)
                raise

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(streaming, handler.request_deserializer, handler.response_serializer)

    def _unary(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any], *, passed_on: bool
    ) -> grpc.RpcMethodHandler[Any, Any]:
        inner: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        audited = policy.mutates(method) and not passed_on

        async def unary(request: Any, context: Context) -> Any:
            caller = await self._admit(method, request, context, passed_on=passed_on)
            if not audited:
                return await inner(request, context)
            self._log.require_room()
            try:
                response = await inner(request, context)
            except asyncio.CancelledError:
                gone = SwitchgearError("the caller went away; it may have been done", Reason.INTERNAL)
                self._log.put(
                    replace(
                        self._entry(caller, method, context, resource=_resource(request), error=gone),
                        outcome="CANCELLED",
                    )
                )
                raise
            except Exception as error:
                entry = self._entry(caller, method, context, resource=_resource(request), error=error)
                if caller.kind is Kind.NOBODY or entry.outcome in _REFUSALS:
                    self._refuse(entry, error)
                else:
                    await self._log.write(entry)
                raise
            caller = identity.current()  # whoever joined is known now
            await self._log.write(self._entry(caller, method, context, resource=_resource(request, response)))
            return response

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(unary, handler.request_deserializer, handler.response_serializer)

    async def _admit(self, method: str, request: Any, context: Context, *, passed_on: bool) -> Identity:
        """Who calls, when they may; from here on `identity.current` says so."""
        caller = NOBODY
        try:
            if policy.needs(method) is not policy.Needs.NOTHING:
                caller = await self._identify(context)
            if not policy.may(caller, method):
                raise PermissionDenied(policy.denial(caller, method), Reason.ROLE_TOO_LOW, method=method[:100])
            if passed_on and caller.kind in (Kind.NODE, Kind.SERVICE):
                # It would go on under our certificate and be taken for ours.
                raise PermissionDenied(
                    f"{caller.actor} must call the service that has {method}; this one hands on calls of people alone",
                    Reason.ROLE_TOO_LOW,
                    method=method[:100],
                )
        except (Unauthenticated, PermissionDenied) as error:
            self._refuse(self._entry(caller, method, context, resource=_resource(request), error=error), error)
            raise
        identity.enter(caller)
        return caller

    async def _while_known(self, context: Context, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The responses, until the caller's token is not good any more; asked before each of them, and while none comes.

        Raises Unauthenticated then.
        """
        # One context for all of them: a span that is begun before a response may be ended after it.
        context_variables = copy_context()

        async def following() -> Any:
            return await anext(responses)

        response: asyncio.Task[Any] | None = None
        try:
            while True:
                response = asyncio.create_task(following(), context=context_variables)
                while not (await asyncio.wait((response,), timeout=RECHECK_S))[0]:
                    await self._identify(context)
                try:
                    answer = response.result()
                except StopAsyncIteration:
                    return
                await self._identify(context)
                yield answer
        finally:
            if response is not None:
                response.cancel()
                await asyncio.gather(response, return_exceptions=True)

    async def _identify(self, context: Context) -> Identity:
        return await self._callers.identify(_header(context, "authorization"), peer_uris(context.auth_context()))

    def _refuse(self, entry: Entry, error: Exception) -> None:
        self._log.refuse(entry)
        self._refused(error.reason if isinstance(error, SwitchgearError) else Reason.INTERNAL)

    def _entry(
        self,
        caller: Identity,
        method: str,
        context: Context,
        *,
        resource: str = "",
        error: Exception | None = None,
    ) -> Entry:
        refused = isinstance(error, Unauthenticated | PermissionDenied) or (
            error is not None and caller.kind is Kind.NOBODY
        )
        return Entry(
            time_unix_ns=self._clock.unix_ns(),
            actor=caller.actor,
            role=caller.role,
            method=method,
            resource=resource,
            outcome=_outcome(error, context),
            message="" if error is None else _message(error, context),
            peer=_peer(caller, context, refused=refused),
            trace_id=_trace_id(context),
            refused=refused,
        )


def _outcome(error: Exception | None, context: Context) -> str:
    if error is None:
        return "OK"
    if isinstance(error, SwitchgearError):
        return error.code
    if isinstance(error, grpc.aio.AbortError):
        return str(getattr(context.code(), "name", "UNKNOWN"))
    return "UNIMPLEMENTED" if isinstance(error, NotImplementedError) else "INTERNAL"


def _message(error: Exception, context: Context) -> str:
    if isinstance(error, grpc.aio.AbortError):
        return str(context.details() or "")
    return error.message if isinstance(error, SwitchgearError) else type(error).__name__


def _resource(request: Any, response: Any = None) -> str:
    """What the request names, or what came of it."""
    for message in (request, response, getattr(response, "token", None)):
        for field in ("name", "job", "node"):
            value = getattr(message, field, None)
            if isinstance(value, str) and value:
                return value
    for field, collection in (("job_id", "jobs"), ("service_id", "inferenceServices")):
        if value := getattr(request, field, ""):
            return f"{collection}/{value}"
    return ""


def _header(context: Context, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return None


def _peer(caller: Identity, context: Context, *, refused: bool) -> str:
    """Whence a call came; of one that was refused the host alone, so that a flood of them counts as one kind."""
    told = _header(context, PEER_HEADER)
    certified = any(of_uri(uri) == _CONTROL_PLANE for uri in peer_uris(context.auth_context()))
    whence = told if told and certified and caller.kind is not Kind.SERVICE else context.peer()
    peer = split_peer(whence)
    if peer is None:
        return whence
    return peer[0] if refused else f"{peer[0]}:{peer[1]}"


def _trace_id(context: Context) -> str:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        return trace.format_trace_id(span.trace_id)
    parts = (_header(context, "traceparent") or "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
