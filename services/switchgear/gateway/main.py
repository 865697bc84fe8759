"""Composes the gateway and serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, TypeAlias

import grpc.aio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match

from switchgear.core import rpc
from switchgear.core.errors import FailedPrecondition, NotFound, Reason, SwitchgearError
from switchgear.core.service import Endpoints
from switchgear.core.tls import TlsFiles
from switchgear.gateway import targets
from switchgear.gateway.bindings import Binding, bindings
from switchgear.gateway.errors import error_response
from switchgear.gateway.metrics import CountRequests, RequestMetrics
from switchgear.gateway.openapi import describe
from switchgear.gateway.transcoder import transcode
from switchgear.web import server

#: More at a time than people and scripts open; beyond it the answer is 503 at once instead of a growing queue.
CONNECTIONS_MAX = 1000
SHUTDOWN_GRACE_S = 2
_Next: TypeAlias = Callable[[Request], Awaitable[Response]]


#: Called with the `Authorization` header (None: there is none), the caller's host, the verb with the path as the contract has it, and
#: the path; raises Unauthenticated.
Admit: TypeAlias = Callable[[str | None, str, str, str], Awaitable[None]]
#: What a load balancer or a person without a token may read.
_OPEN_PATHS = frozenset({"/healthz", "/openapi.json"})


def build_app(
    endpoints: Endpoints, admit: Admit | None = None, *, registry: CollectorRegistry | None = None
) -> FastAPI:
    """The REST surface of the services at these endpoints. registry: where its metrics go; a private one when left out.

    admit: says who may come in, with TLS; without it whoever reaches loopback may, under one of loopback's names.
    """
    channels: dict[str, grpc.aio.Channel] = {}
    all_bindings = list(bindings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for name in {binding.endpoint for binding in all_bindings}:
            channels[name] = endpoints.channel(name)
        yield
        for channel in channels.values():
            await channel.close()

    version = metadata.version("switchgear")
    app = FastAPI(
        title="Switchgear",
        version=version,
        lifespan=lifespan,
        # The pages that FastAPI would serve load their scripts from the internet.
        docs_url=None,
        redoc_url=None,
        # A span for each call of the API, once `core.trace` is configured.
        telemetry={"operation_spans": False, "metrics": False, "logs": False, "exclude": _no_call_of_the_api},
    )
    for binding in all_bindings:
        app.add_api_route(binding.path, _endpoint(binding, channels), methods=[binding.verb], include_in_schema=False)
    app.add_api_route("/healthz", _healthz, methods=["GET"], include_in_schema=False)
    app.add_api_route(
        "/prometheus/targets", _targets(channels, secure=admit is not None), methods=["GET"], include_in_schema=False
    )
    description = describe(all_bindings, version)
    app.openapi = lambda: description  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _http_error)
    app.middleware("http")(_only_admitted(admit) if admit else _only_loopback)
    app.add_middleware(CountRequests, metrics=RequestMetrics(registry or CollectorRegistry()))
    return app


@asynccontextmanager
async def serve(app: FastAPI, host: str, port: int, tls: TlsFiles | None = None) -> AsyncIterator[str]:
    """Serves until the block ends; gives the address with the port that was taken (0 takes a free one).

    tls: certificate and key for HTTPS; None: plain HTTP.
    Raises FailedPrecondition when the port is taken, or the host is beyond loopback and there is no TLS.
    """
    async with server.listening(
        app, f"{host}:{port}", tls=tls, connections_max=CONNECTIONS_MAX, grace_s=SHUTDOWN_GRACE_S
    ) as address:
        yield address


def _endpoint(binding: Binding, channels: dict[str, grpc.aio.Channel]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await transcode(binding, request, channels)

    return endpoint


def _no_call_of_the_api(scope: MutableMapping[str, Any]) -> bool:
    return not str(scope.get("path", "")).startswith("/v1")


def _targets(channels: dict[str, grpc.aio.Channel], *, secure: bool) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await targets.answer(request, channels, secure=secure)

    return endpoint


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return error_response(NotFound(request.url.path, "there is no such path; /openapi.json lists all"))
    if status == 405:
        wrong = SwitchgearError("this path does not take this method; /openapi.json lists all", Reason.BODY_INVALID)
        return error_response(wrong, code="UNIMPLEMENTED", http_status=405)
    return error_response(SwitchgearError(f"the request was refused: {status}", Reason.INTERNAL), http_status=status)


def _only_admitted(admit: Admit) -> Callable[[Request, _Next], Awaitable[Response]]:
    async def only_admitted(request: Request, call_next: _Next) -> Response:
        # Behind this the gateway speaks with its own certificate, so nobody gets there who has not shown a token.
        if request.url.path not in _OPEN_PATHS:
            host = request.client.host if request.client else ""
            try:
                await admit(request.headers.get("authorization"), host, _route(request), request.url.path)
            except SwitchgearError as error:
                return error_response(error)
        return await call_next(request)

    return only_admitted


def _route(request: Request) -> str:
    """What is asked for, in words that are not the caller's choice."""
    for route in request.app.routes:
        if route.matches(request.scope)[0] is Match.FULL:
            return f"{request.method} {route.path}"
    return "a path that does not exist"


async def _only_loopback(request: Request, call_next: _Next) -> Response:
    # A page of somebody else can point its own name at 127.0.0.1 and then read our answers; its name betrays it.
    try:
        rpc.require_loopback(request.url.hostname or "")
    except FailedPrecondition:
        error = FailedPrecondition(
            "this gateway answers only to localhost and loopback addresses; use one of them in the URL",
            Reason.INSECURE_BIND,
        )
        return error_response(error, http_status=421)
    return await call_next(request)
