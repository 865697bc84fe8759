"""Clients that connect and do not say what they want, at the gateway and at router and replicas: they do not keep others out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from switchgear.core import rpc
from switchgear.gateway import main as gateway
from switchgear.serve import http
from switchgear.web import request_head

HEAD_S = 0.3
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
#: In which nobody of those who are cut off is waited for.
PATIENCE_S = 20.0


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse((await request.body()).decode())


def at_gateway() -> AbstractAsyncContextManager[str]:
    return gateway.serve(FastAPI(routes=[Route("/", answer, methods=["POST"])]), "127.0.0.1", 0)


def at_router() -> AbstractAsyncContextManager[str]:
    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    return http.listening(app, "127.0.0.1:0", tls=None, client_certificates=False, connections_max=9, grace_s=1)


@pytest.fixture(params=[at_gateway, at_router])
async def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, int]]:
    monkeypatch.setattr(request_head, "HEAD_S_MAX", HEAD_S)
    async with request.param() as address:
        yield rpc.split_address(address)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(4)


@pytest.mark.parametrize("said", [b"", b"POST / HT", HEAD[:-2], HEAD + b"body" + HEAD[:-2]])
async def test_a_connection_without_a_complete_head_is_cut_off(address: tuple[str, int], said: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        if said.startswith(HEAD):
            writer.write(HEAD + b"body")
            assert await read_answer(reader) == b"body"
            said = said.removeprefix(HEAD + b"body")
        writer.write(said)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
    finally:
        writer.close()


async def test_a_slow_body_and_a_pause_between_two_requests_are_not_cut_off(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        for _ in range(2):
            writer.write(HEAD + b"bo")
            await asyncio.sleep(2 * HEAD_S)
            writer.write(b"dy")
            assert await read_answer(reader) == b"body"
            await asyncio.sleep(2 * HEAD_S)
    finally:
        writer.close()
