"""A store that only counts, for what is forwarded; it may be slow, or refuse everything.

    python -m ingestbench.sink PORT [ok|slow|failing]

It keeps the bodies and decodes them when asked (GET /decoded), so that it costs nobody time while samples flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import Sequence

from ingestbench.remote_write import samples_in

#: What a slow one takes for each request.
SLOW_S = 2.0


class Sink:
    """Keeps what it takes."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(
                    (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
                )
                status, told = await self._answer(head, await reader.readexactly(length))
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(told)}\r\n\r\n".encode() + told)
                await writer.drain()
        writer.close()

    async def _answer(self, head: str, body: bytes) -> tuple[str, bytes]:
        if head.startswith("GET"):
            # In a thread: senders go on meanwhile, and none waits in vain for its answer.
            return "200 OK", json.dumps(await asyncio.to_thread(decoded, list(self._bodies))).encode()
        if self._mode == "failing":
            return "503 Service Unavailable", b"out of order on purpose"
        if self._mode == "slow":
            await asyncio.sleep(SLOW_S)
        self._bodies.append(body)
        return "204 No Content", b""


def decoded(bodies: Sequence[bytes]) -> dict[str, float]:
    """What is in requests. late: samples of a series that came behind a younger one. ended: those that say that a series has ended."""
    newest: dict[bytes, int] = {}
    samples = late = ended = 0
    total = 0.0
    for body in bodies:
        for labels, value, time_ms in samples_in(body):
            samples += 1
            if math.isnan(value):
                ended += 1
            else:
                total += value
            late += time_ms <= newest.get(labels, 0)
            newest[labels] = max(time_ms, newest.get(labels, 0))
    return {
        "requests": len(bodies),
        "bytes": sum(map(len, bodies)),
        "samples": samples,
        "series": len(newest),
        "late": late,
        "ended": ended,
        "sum": total,
    }


async def main(port: int, mode: str) -> None:
    server = await asyncio.start_server(Sink(mode).serve, "127.0.0.1", port, limit=1 << 20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), (sys.argv[2:] or ["ok"])[0]))
