"""One thread a source, so that a driver call that hangs costs its own series and nothing else."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from dataclasses import dataclass

from switchgear.agent.readings import Reading, SeriesKey, unknown
from switchgear.agent.sources.base import Source

log = logging.getLogger(__name__)

DEADLINE_EXCEEDED = "deadline exceeded"
NO_LONGER_REPORTED = "no longer reported"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one tick got from a source.

    missed: the deadline passed. stalled: it passed now and not already in the tick before, which is worth an event.
    """

    readings: list[Reading]
    missed: bool = False
    stalled: bool = False


class Worker:
    """Samples one source in a daemon thread: a call that never returns must not keep the agent from ending."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._requests: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[list[Reading]]] | None] = (
            queue.SimpleQueue()
        )
        self._busy: asyncio.Future[list[Reading]] | None = None
        self._keys: list[SeriesKey] = []
        threading.Thread(target=self._run, name=f"source-{source.name}", daemon=True).start()

    async def sample(self) -> Sample:
        """Readings within the source's deadline, or unknown for every series it had."""
        if self._busy is not None and not self._busy.done():
            return Sample(self._all_unknown(DEADLINE_EXCEEDED), missed=True)
        loop = asyncio.get_running_loop()
        self._busy = answer = loop.create_future()
        self._requests.put((loop, answer))
        done, _ = await asyncio.wait([answer], timeout=self.source.deadline_s)
        if not done:
            log.warning("source %s did not answer within %s s", self.source.name, self.source.deadline_s)
            # Whatever it says later describes a moment that has passed.
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())
            return Sample(self._all_unknown(DEADLINE_EXCEEDED), missed=True, stalled=True)
        error = answer.exception()
        if error is not None:
            return Sample(self._all_unknown(f"{type(error).__name__}: {error}"))
        readings = answer.result()
        present = [reading.key for reading in readings]
        gone = set(self._keys).difference(present)
        self._keys = present
        return Sample([*readings, *(unknown(key, NO_LONGER_REPORTED) for key in gone)])

    def close(self) -> None:
        """Ends the thread once its present call returns."""
        self._requests.put(None)

    def _all_unknown(self, reason: str) -> list[Reading]:
        return [unknown(key, reason) for key in self._keys]

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            loop, answer = request
            try:
                readings, error = self.source.sample(), None
            except Exception as caught:  # whatever a driver raises is a reason, not the agent's end
                readings, error = [], caught
            try:
                loop.call_soon_threadsafe(_settle, answer, readings, error)
            except RuntimeError:  # the loop has closed meanwhile
                return


def _settle(answer: asyncio.Future[list[Reading]], readings: list[Reading], error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(readings)
    else:
        answer.set_exception(error)
