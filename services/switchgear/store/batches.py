"""Statements of many rows that can be cancelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

#: asyncpg collects four buffers, each closed by the row that brings it over 32 KiB, before it first waits for the server.
BUFFERS = 4
BYTES_MAX = BUFFERS * 32 * 1024
#: Of one row beyond its values: the messages that bind and execute it.
_ROW_BYTES = 256
#: Of a value that is neither text nor bytes, and of the length before each.
_VALUE_BYTES = 64


def cancellable(engine: AsyncEngine) -> None:
    """From now on, what this engine sends of one statement's rows at once is less than asyncpg waits in the middle of.

    Its `executemany` hangs for ever when it is cancelled there: it takes no notice, and the server waits for the rest.
    """
    event.listen(engine.sync_engine, "do_executemany", _execute)


def _execute(cursor: Any, statement: str, rows: Sequence[Sequence[object]], _context: object) -> bool:
    for batch in batches(rows):
        cursor.executemany(statement, batch)
    return True


def batches(rows: Sequence[Sequence[object]]) -> Iterator[list[Sequence[object]]]:
    """The rows in order, each batch too small for all buffers to fill, by its bytes or by its number of rows."""
    batch: list[Sequence[object]] = []
    total = 0
    for row in rows:
        size = _ROW_BYTES + sum(_size(value) for value in row)
        if len(batch) >= BUFFERS - 1 and total + size >= BYTES_MAX:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size
    if batch:
        yield batch


def _size(value: object) -> int:
    """Bytes on the wire at most."""
    if isinstance(value, str):
        return _VALUE_BYTES + 4 * len(value)
    if isinstance(value, bytes):
        return _VALUE_BYTES + len(value)
    if isinstance(value, int | float | None):
        return _VALUE_BYTES
    return _VALUE_BYTES + 4 * len(str(value))
