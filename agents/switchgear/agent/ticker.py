"""The beat: all sources in turn, one block a tick, and nobody waits for one that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import chain

from switchgear.agent.crew import Crew, Job
from switchgear.agent.events import RESUMED, STALLED, Events, Finding
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.outbox import Outbox
from switchgear.agent.stream import TelemetryStream
from switchgear.agent.worker import Sample, Worker
from switchgear.core.clock import Clock

EVENT_SOURCE = "agent"
#: What a block waits for answers at most; what comes later is in the next one. A healthy driver answers within milliseconds.
PATIENCE_S = 0.1
#: After this one more thread takes what is left, after as long again two, then four: behind a call that hangs nobody waits longer, and with
#: a slow driver each GPU has its thread in time.
RELIEF_S = 0.015
#: What a tick waits for the disk to take an event; a disk that stalls must not stop the beat.
_DISK_S = 0.1


class Ticker:
    """Samples every `interval_s`, or slower when the collector asks for it."""

    def __init__(
        self,
        workers: Sequence[Worker],
        outbox: Outbox,
        stream: TelemetryStream,
        *,
        metrics: AgentMetrics,
        events: Events,
        clock: Clock,
        interval_s: float,
    ) -> None:
        self._workers = workers
        self._crew = Crew()
        self._outbox = outbox
        self._clock = clock
        self._interval_s = interval_s
        self._stream = stream
        self._metrics = metrics
        self._events = events
        self._telling = set[asyncio.Task[None]]()

    async def run(self) -> None:
        """Ticks until cancelled."""
        due_s = self._clock.monotonic_s()
        try:
            while True:
                await self.tick()
                now_s = self._clock.monotonic_s()
                due_s = next_beat_s(due_s, max(self._interval_s, self._stream.interval_s_min), now_s)
                await asyncio.sleep(due_s - now_s)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the threads that ask the sources, each once its present call returns."""
        self._crew.close()

    async def tick(self) -> None:
        """One block from all sources; one that hangs gets an event, and another when it answers again."""
        time_unix_ns = self._clock.unix_ns()
        now_s = self._clock.monotonic_s()
        late = self._take(now_s)
        await self._ask(now_s)
        now = self._take(self._clock.monotonic_s())
        readings = chain.from_iterable(sample.readings for _, sample in (*late, *now))
        self._outbox.put(self._outbox.sampler.tick(readings, time_unix_ns))
        for worker, sample in now:
            if sample.missed:
                self._metrics.deadline_misses.labels(worker.name).inc()
        for worker, sample in (*late, *now):
            if sample.stalled:
                await self._tell(worker, STALLED, f"did not answer within {worker.deadline_s} s", time_unix_ns)
            if sample.resumed:
                await self._tell(worker, RESUMED, "answers again", time_unix_ns)

    async def _ask(self, now_s: float) -> None:
        """Lets all workers that are due answer, and waits until they have or `PATIENCE_S` has passed."""
        loop = asyncio.get_running_loop()
        answers = _Answers(loop)
        questions = [worker.ask(now_s, answers.count) for worker in self._workers]
        jobs = deque[Job](question for question in questions if question is not None)
        answers.missing = len(jobs)
        end_s = loop.time() + min(PATIENCE_S, self._interval_s)
        helping = 0
        while answers.missing and (left_s := end_s - loop.time()) > 0:
            for _ in range(min(max(helping, 1), len(jobs))):
                self._crew.help(jobs)
                helping += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(RELIEF_S, left_s) if jobs else left_s):
                    await answers.complete.wait()
        for _ in range(len(jobs)):  # or who is left would wait for those that hang
            self._crew.help(jobs)

    def _take(self, now_s: float) -> list[tuple[Worker, Sample]]:
        return [(worker, worker.take(now_s)) for worker in self._workers]

    async def _tell(self, worker: Worker, kind: str, words: str, time_unix_ns: int) -> None:
        finding = Finding(kind, f"{worker.name} {words}", gpu=worker.gpu)
        telling = asyncio.create_task(
            self._outbox.disk.call(partial(self._events.tell, EVENT_SOURCE, finding, time_unix_ns=time_unix_ns))
        )
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        await asyncio.wait([telling], timeout=_DISK_S)


def next_beat_s(due_s: float, interval_s: float, now_s: float) -> float:
    """When it beats after the beat that was due at `due_s`: a late one moves nothing, and missed ones are not made up for.

    At whole multiples of the interval: timers that fall together wake the process once, and what gRPC has to send then goes together.
    """
    # A timer may fire a moment too soon, which must not be a beat more.
    return (math.floor(max(due_s + interval_s / 2, now_s) / interval_s) + 1) * interval_s


class _Answers:
    """Counts answers that come from other threads, and wakes the loop for the last one only. missing: how many are still to come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.missing = 0
        self.complete = asyncio.Event()
        self._loop = loop
        self._lock = threading.Lock()

    def count(self) -> None:
        """One more answer; from any thread."""
        with self._lock:
            self.missing -= 1
            complete = self.missing == 0
        if complete:
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                self._loop.call_soon_threadsafe(self.complete.set)
