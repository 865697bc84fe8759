"""Signals that end a run from this terminal: handed to its ranks, which get a while to end by themselves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from switchgear.cli.run_options import Stopping

T = TypeVar("T")


class StopSignal:
    """The first of these signals cancels the work; a second one does not wait for what the first has begun."""

    def __init__(self, stopping: Stopping) -> None:
        self._numbers = stopping.signals
        self.grace_s = stopping.grace_s
        #: The one that came; 0: none yet.
        self.number = 0

    @property
    def for_ranks(self) -> int:
        """What ranks are sent. Ctrl-C is SIGTERM to them: Python takes SIGINT between two lines of its own only, and a rank that
        waits for a peer has none."""
        return signal.SIGTERM if self.number in (0, signal.SIGINT) else self.number

    @property
    def exit_code(self) -> int:
        """As shells have it."""
        return 128 + self.number

    async def watch(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; None when a signal ended it, once it has cleaned up."""
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            self.number = self.number or number
            task.cancel()

        for number in self._numbers:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # by `nohup`: the terminal may go
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        try:
            return await task
        except asyncio.CancelledError:
            return None
