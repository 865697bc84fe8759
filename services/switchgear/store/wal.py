"""The write-ahead log of SQLite, kept short.

SQLite begins its log anew only at a moment at which nobody reads from it. Readers that overlap leave no such moment, however short each of
them is, and the log grows with every write: 147 MB after 1,500 writes of 50 kB beside three readers, 17 MB with this.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: A log of this length is written into the database and cut off: a second of writes at most, and read in no time after a crash.
WAL_BYTES_MAX = 16 << 20
#: How long writers wait for the readers of the moment, in tries that begin anew: one long try can miss all the moments that there are. A reader
#: that takes longer is waited for again after as much has been written once more.
_TRIES = 5
_TRY_MS = 100


class Wal:
    """Of the database in that file."""

    def __init__(self, database: Path) -> None:
        self._log = database.with_name(f"{database.name}-wal")
        self._next_bytes = WAL_BYTES_MAX

    def is_long(self) -> bool:
        return self._bytes() >= self._next_bytes

    async def cut(self, connection: Any, busy_timeout_ms: int) -> None:
        """While nobody writes. connection: aiosqlite's, outside of a transaction, with that busy timeout."""
        await connection.execute(f"PRAGMA busy_timeout = {_TRY_MS}")
        try:
            for _ in range(_TRIES):
                async with connection.execute("PRAGMA wal_checkpoint(TRUNCATE)") as cursor:
                    busy = (await cursor.fetchone())[0]
                if not busy:
                    break
        except sqlite3.Error as error:  # what was written is written
            log.warning("cannot shorten the database's log: %s", error)
            busy = 1
        finally:
            await connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
        length = self._bytes()
        self._next_bytes = length + WAL_BYTES_MAX if busy else WAL_BYTES_MAX
        if busy:
            log.warning("somebody reads the database for long: its log has %d MB", length >> 20)

    def _bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:  # it was closed in good order
            return 0
