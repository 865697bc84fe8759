"""What a start leaves behind, given back: an agent should be small on a node whose memory belongs to jobs."""

from __future__ import annotations

import asyncio
import ctypes
import gc

#: By then every source has had its turn, and all code that will run is loaded.
SETTLED_S = 15.0


async def give_back_once_settled() -> None:
    """Two megabytes of what imports used for a moment; and what stays for ever is no longer searched for garbage."""
    await asyncio.sleep(SETTLED_S)
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
