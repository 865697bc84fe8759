"""HTTP as replica and router serve it: bounded bodies, errors in OpenAI's form, work that ends when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from switchgear.core import rpc
from switchgear.core.errors import FailedPrecondition, Invalid, Reason, SwitchgearError
from switchgear.core.tls import TlsFiles
from switchgear.serve import completions
from switchgear.web import server

T = TypeVar("T")

#: What nginx writes when the client went away before the answer; nobody reads it.
CLIENT_GONE = 499
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 421,
    "UNAVAILABLE": 503,
}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


class ClientGoneError(Exception):
    """The client closed the connection before its answer was there."""


@asynccontextmanager
async def listening(
    app: Starlette,
    address: str,
    *,
    tls: TlsFiles | None,
    client_certificates: bool,
    connections_max: int,
    grace_s: float,
) -> AsyncIterator[str]:
    """Serves until the block ends, then finishes what is in flight within `grace_s`; gives the address with the port that was taken.

    tls: our certificate and key; None: plain HTTP, on loopback and under one of its names only. client_certificates: only clients with a certificate of
    `tls.ca` are served. connections_max: more are answered 503 at once.
    Raises FailedPrecondition when the port is taken, a file cannot be used, or the address is beyond loopback without TLS.
    """
    guarded = app if tls is not None else _OnlyLoopback(app)
    async with server.listening(
        guarded,
        address,
        tls=tls,
        client_certificates=client_certificates,
        connections_max=connections_max,
        grace_s=grace_s,
    ) as taken:
        yield taken


class _OnlyLoopback:
    """A page of somebody else can point its own name at 127.0.0.1 and then read our answers; its name betrays it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not rpc.is_loopback(Request(scope).url.hostname or ""):
            error = FailedPrecondition(
                "this server answers only to localhost and loopback addresses; use one of them in the URL",
                Reason.INSECURE_BIND,
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def read_body(request: Request) -> bytes:
    """The whole body. Raises Invalid when it is too large or not said to be JSON, ClientGoneError when it does not come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps web pages of others out: a browser asks before it sends JSON elsewhere, and we never allow it.
        raise Invalid("send the header `Content-Type: application/json`", Reason.BODY_INVALID, content_type=kind[:100])
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > completions.BODY_BYTES_MAX:
                raise Invalid(
                    f"the body has more than {completions.BODY_BYTES_MAX} bytes; send a shorter prompt",
                    Reason.LIMIT_EXCEEDED,
                )
    except ClientDisconnect as error:
        raise ClientGoneError from error
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; cancels it and raises ClientGoneError when the client goes away. The body was read before."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def error_response(error: SwitchgearError, *, status: int = 0) -> JSONResponse:
    """The error in the form of OpenAI's API, whose clients show the message. status: when another than that of the error fits."""
    status = status or _STATUS.get(error.code, 500)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {
        "error": {"message": error.message, "type": kind, "param": error.metadata.get("field"), "code": error.reason}
    }
    return JSONResponse(body, status, headers=_HEADERS.get(status))
