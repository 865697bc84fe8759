"""A TCP proxy on loopback that counts what goes through it, HTTP/2 frames and all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Counted:
    """Bytes from the client to the server and back; those of TCP and IP are not among them. address: of the proxy."""

    address: str = ""
    sent: int = 0
    answered: int = 0


@asynccontextmanager
async def counting(target: str) -> AsyncIterator[Counted]:
    """Forwards connections to `target` (host:port)."""
    counted = Counted()
    host, _, port = target.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sent: bool) -> None:
        while data := await reader.read(65_536):
            if sent:
                counted.sent += len(data)
            else:
                counted.answered += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(pump(reader, back, sent=True), pump(there, writer, sent=False), return_exceptions=True)
        finally:
            writer.close()
            back.close()

    connections = set[asyncio.Task[None]]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(forward(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    counted.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield counted
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
