"""Many targets for one Prometheus to scrape, from one process: GET /NUMBER is the page of that node at this second.

python -m ingestbench.exposition PORT NODES SERIES TICKS
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

from ingestbench import data


class Pages:
    """Labels are written once; a page only joins them with the values of the second."""

    def __init__(self, nodes: int, series: int, ticks: int) -> None:
        names = [f"sim-{ordinal:04}" for ordinal in range(1, nodes + 1)]
        self._heads = [[_head(one) for one in data.series_of(name, series)] for name in names]
        self._values = [
            [[repr(float(value)) for value in row] for row in table] for table in data.values(series, ticks)
        ]
        self._ticks = ticks

    def page(self, node: int) -> bytes:
        rows = self._values[node % len(self._values)]
        values = rows[int(time.time()) % self._ticks]
        parts = [""] * (2 * len(values))
        parts[::2] = self._heads[node]
        parts[1::2] = values
        return ("".join(parts)[1:] + "\n").encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = self.page(int(head.split(b" ", 2)[1][1:]))
                kind = b"text/plain; version=0.0.4; charset=utf-8"
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
                )
                await writer.drain()
        writer.close()


def _head(series: data.Series) -> str:
    """A line up to the value; Prometheus adds instance and job by itself."""
    added = ("__name__", "instance", "job")
    labels = ",".join(f'{name}="{value}"' for name, value in series.labels if name not in added)
    return f"\n{dict(series.labels)['__name__']}{{{labels}}} "


async def main(port: int, nodes: int, series: int, ticks: int) -> None:
    pages = Pages(nodes, series, ticks)
    server = await asyncio.start_server(pages.serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:5])))
