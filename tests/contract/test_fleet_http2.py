"""The fleet's own gRPC client, spoken to by a real gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from switchgear.sim.fleet.http2 import GrpcCall

PATH = "/test.Echo/Stream"
WITHIN_S = 10.0


class Echo:
    """Answers each message with itself; ends with an error after `refuse`, and in peace after `end`."""

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async for message in requests:
            if message == b"refuse":
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much; send 50 % less")
            if message == b"end":
                return
            yield message


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(Echo().stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(0)


class Client:
    """A call, and what came of it."""

    def __init__(self) -> None:
        self.messages = asyncio.Queue[bytes]()
        self.ended: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self.call = GrpcCall(
            "127.0.0.1",
            PATH,
            secure=False,
            on_message=self.messages.put_nowait,
            on_end=lambda status, message: self.ended.set_result((status, message)),
        )

    async def connect(self, port: int) -> Client:
        await asyncio.get_running_loop().create_connection(lambda: self.call, "127.0.0.1", port)
        return self

    async def message(self) -> bytes:
        return await asyncio.wait_for(self.messages.get(), WITHIN_S)

    async def end(self) -> tuple[str, str]:
        return await asyncio.wait_for(self.ended, WITHIN_S)


async def test_messages_of_any_size_arrive_whole_and_in_order(port: int) -> None:
    client = await Client().connect(port)
    # Beyond one frame, and beyond what may be under way before the server makes room.
    sent = [bytes([number]) * size for number, size in enumerate((0, 1, 16_379, 16_380, 300_000, 5, 1_000_000, 7))]
    for message in sent:
        client.call.send(message)
    assert [await client.message() for _ in sent] == sent
    assert not client.call.waiting_bytes
    client.call.cancel()


async def test_a_connection_goes_on_beyond_what_it_first_had_room_for(port: int) -> None:
    client = await Client().connect(port)
    for _ in range(12):
        client.call.send(bytes(2_000_000))
        assert len(await client.message()) == 2_000_000
    client.call.cancel()


async def test_the_end_of_a_call_is_told_once_with_the_servers_words(port: int) -> None:
    refused, ended = await Client().connect(port), await Client().connect(port)
    refused.call.send(b"refuse")
    ended.call.send(b"end")
    assert await refused.end() == ("8", "too much; send 50 % less")
    assert (await ended.end())[0] == "0"
    refused.call.send(b"nobody hears it")


async def test_a_connection_that_breaks_ends_the_call_without_a_status() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        client = await Client().connect(server.sockets[0].getsockname()[1])
        status, message = await client.end()
        assert status == ""
        assert message.endswith("before a word; is a gRPC server there, and does it want TLS?")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no gRPC server answers there"),
        # HEADERS with `:status: 200` and the end of the stream, as a server says it that means no gRPC.
        (b"\0\0\x01\x01\x05\0\0\0\x01\x88", "the server ended the call without a status"),
        (
            b"\0\x40\0\x01\0\0\0\0\x01" + bytes(16_384) + 4 * (b"\0\x40\0\x09\0\0\0\0\x01" + bytes(16_384)),
            "more headers",
        ),
    ],
)
async def test_a_server_that_speaks_no_grpc_ends_the_call_at_once(answer: bytes, told: str) -> None:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        client = await Client().connect(server.sockets[0].getsockname()[1])
        status, message = await client.end()
        assert (status, told in message) == ("", True)
