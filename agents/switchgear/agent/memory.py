"""What a start leaves behind, given back: an agent should be small on a node whose memory belongs to jobs."""

from __future__ import annotations

import asyncio
import ctypes
import gc

#: By then every source has had its turn, and all code that will run is loaded.
SETTLED_S = 15.0


#: Of mallopt(3).
_M_ARENA_MAX = -8
_ARENAS_MAX = 1


def share_heap() -> None:
    """Before there are threads: glibc gives each of them a heap of its own, and what a scrape used once would stay in all of them."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, _ARENAS_MAX)


async def give_back_once_settled() -> None:
    """Two megabytes of what imports used for a moment; and what stays for ever is no longer searched for garbage."""
    await asyncio.sleep(SETTLED_S)
    gc.collect()
    gc.freeze()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc alone
        trim(0)
