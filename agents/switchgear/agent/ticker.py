"""The beat: all sources at once, one block a tick."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from switchgear.agent.events import Events, Finding
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.stream import Outbox, TelemetryStream
from switchgear.agent.worker import Sample, Worker
from switchgear.core.clock import Clock

EVENT_SOURCE = "agent"
STALLED = "SOURCE_STALLED"


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
        self._outbox = outbox
        self._clock = clock
        self._interval_s = interval_s
        self._stream = stream
        self._metrics = metrics
        self._events = events

    async def run(self) -> None:
        """Ticks until cancelled. A tick that took longer than the interval is followed at once, without catching up."""
        while True:
            start_s = self._clock.monotonic_s()
            await self.tick()
            interval_s = max(self._interval_s, self._stream.interval_s_min)
            await asyncio.sleep(max(0.0, start_s + interval_s - self._clock.monotonic_s()))

    async def tick(self) -> None:
        """One block from all sources; a source that stalls gets an event, once until it answers again."""
        time_unix_ns = self._clock.unix_ns()
        now_s = self._clock.monotonic_s()
        samples = await asyncio.gather(*(worker.sample(now_s) for worker in self._workers))
        for worker, sample in zip(self._workers, samples, strict=True):
            await self._note_miss(worker, sample, time_unix_ns)
        readings = (reading for sample in samples for reading in sample.readings)
        self._outbox.put(self._outbox.sampler.tick(readings, time_unix_ns))

    async def _note_miss(self, worker: Worker, sample: Sample, time_unix_ns: int) -> None:
        if sample.missed:
            self._metrics.deadline_misses.labels(worker.name).inc()
        if sample.stalled:
            finding = Finding(STALLED, f"{worker.name} did not answer within {worker.deadline_s} s", gpu=worker.gpu)
            # In a thread: the disk may be what stalls.
            await asyncio.to_thread(self._events.tell, EVENT_SOURCE, finding, time_unix_ns=time_unix_ns)
