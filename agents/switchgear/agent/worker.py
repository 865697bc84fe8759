"""One thread for each thing that may hang, so that a driver call that never returns costs its own series and nothing else."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from switchgear.agent.readings import Reading, SeriesKey, unknown
from switchgear.agent.sources.base import Source

log = logging.getLogger(__name__)

DEADLINE_EXCEEDED = "deadline exceeded"
NO_LONGER_REPORTED = "no longer reported"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one tick got from a worker; a series that is not in it was not sampled.

    missed: the deadline passed. stalled: it passed now and not already in the tick before, which is worth an event.
    """

    readings: list[Reading]
    missed: bool = False
    stalled: bool = False


class _Scheduled:
    """One source: when it is due, and the series that it had at last."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.keys: list[SeriesKey] = []
        self._due_s: float | None = None

    def due(self, now_s: float) -> bool:
        """Whether to sample now; after the first time slow sources are spread over their period, or they would all come at once."""
        period_s = self.source.period_s
        if period_s <= 0:
            return True
        if self._due_s is None:
            self._due_s = now_s + period_s * zlib.crc32(self.source.name.encode()) / 2**32
            return True
        if now_s < self._due_s:
            return False
        self._due_s = max(self._due_s + period_s, now_s)
        return True

    def sample(self) -> list[Reading]:
        """The readings, and unknown for each series that is gone or could not be read."""
        try:
            readings = self.source.sample()
        except Exception as error:  # whatever a driver raises is a reason, not the agent's end
            return [unknown(key, f"{type(error).__name__}: {error}") for key in self.keys]
        present = [reading.key for reading in readings]
        gone = set(self.keys).difference(present)
        self.keys = present
        return [*readings, *(unknown(key, NO_LONGER_REPORTED) for key in gone)]


class Worker:
    """Samples its sources one after the other in a daemon thread: a call that never returns must not keep the agent from ending.

    name: shown in metrics and events. deadline_s: longest time that a tick waits; then all its series count as unknown until it
    answers. gpu: index of the GPU that it reads, when it reads exactly one.
    """

    def __init__(self, name: str, sources: Sequence[Source], *, deadline_s: float, gpu: int | None = None) -> None:
        self.name = name
        self.deadline_s = deadline_s
        self.gpu = gpu
        self._sources = [_Scheduled(source) for source in sources]
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._busy: asyncio.Future[list[Reading]] | None = None
        threading.Thread(target=self._run, name=f"source-{name}", daemon=True).start()

    async def sample(self, now_s: float) -> Sample:
        """Readings of the sources that are due, or unknown for every series when the deadline passes.

        now_s: the tick's monotonic time.
        """
        if self._busy is not None and not self._busy.done():
            return Sample(self._all_unknown(), missed=True)
        due = [scheduled for scheduled in self._sources if scheduled.due(now_s)]
        if not due:
            return Sample([])
        loop = asyncio.get_running_loop()
        self._busy = answer = loop.create_future()
        self._requests.put((loop, answer, due))
        done, _ = await asyncio.wait([answer], timeout=self.deadline_s)
        if not done:
            log.warning("%s did not answer within %s s", self.name, self.deadline_s)
            # Whatever it says later describes a moment that has passed.
            return Sample(self._all_unknown(), missed=True, stalled=True)
        return Sample(answer.result())

    def close(self) -> None:
        """Ends the thread once its present call returns."""
        self._requests.put(None)

    def _all_unknown(self) -> list[Reading]:
        return [unknown(key, DEADLINE_EXCEEDED) for scheduled in self._sources for key in scheduled.keys]

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            loop, answer, due = request
            readings = [reading for scheduled in due for reading in scheduled.sample()]
            try:
                loop.call_soon_threadsafe(_settle, answer, readings)
            except RuntimeError:  # the loop has closed meanwhile
                return


_Request = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[Reading]]", Sequence[_Scheduled]]


def _settle(answer: asyncio.Future[list[Reading]], readings: list[Reading]) -> None:
    if not answer.done():
        answer.set_result(readings)
