"""The event loop of the control plane's processes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: New objects between two looks for cycles. With Python's 700, messages that are under way when many come at once live long enough to count as
#: old, and going through all that is old was a fifth of the CPU of a collector with 4,000 agents.
_GC_OBJECTS = 20_000


def run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, for a server: on uvloop where it is installed, and with rarer garbage collections."""
    collect_rarely()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def collect_rarely() -> None:
    """Garbage collections as a server has them; call it when all is imported."""
    gc.freeze()  # what has been imported stays
    gc.set_threshold(_GC_OBJECTS, 10, 10)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
