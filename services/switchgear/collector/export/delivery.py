"""Brings the batches of a target's queue to it, and counts what becomes of every sample."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from switchgear.collector.export.answer import Answer, Verdict, backoff_s
from switchgear.collector.export.metrics import ExportMetrics, TargetMetrics
from switchgear.collector.export.queue import BatchQueue
from switchgear.collector.export.rows import Batch, Encoder, Held
from switchgear.collector.export.senders import Sender
from switchgear.collector.export.settings import Target
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

#: A target that refuses is in the log once in so many seconds.
_REFUSED_LOG_S = 60.0
#: After a request of which nothing was taken, whole or in parts, refused ones are not divided for so long: it costs many requests.
_UNDIVIDED_S = 60.0


class Delivery:
    """One target. See `feed.Outlet` for its beginning.

    A request that the target refuses for what is in it is sent again in halves, so that a node with a wrong clock costs no other its samples.
    """

    def __init__(
        self,
        target: Target,
        encoder: Encoder,
        sender: Sender,
        metrics: ExportMetrics,
        clock: Clock,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._label = target.label
        self._encoder = encoder
        self._sender = sender
        self._clock = clock
        self._sleep = sleep
        self._lanes = target.connections
        self._queue = BatchQueue(
            target.connections, target.queue_bytes_max, lambda samples: self.dropped(samples, "queue_full")
        )
        self._metrics = TargetMetrics(metrics, self._label, self._queue)
        self._answers = True
        self._refused_log_s = -_REFUSED_LOG_S
        self._undivided_until_s = 0.0

    def put(self, batch: Batch) -> None:
        self._queue.put(batch)

    def dropped(self, samples: int, reason: str) -> None:
        self._metrics.dropped(samples, reason)

    async def run(self) -> None:
        """Sends until cancelled; what is under way then counts as dropped."""
        async with asyncio.TaskGroup() as tasks:
            for lane in range(self._lanes):
                tasks.create_task(self._work(lane))

    async def drained(self) -> None:
        """Waits until all that was put is done with, for a target that answers."""
        if self._answers:
            await self._queue.idle.wait()

    async def close(self) -> None:
        """After `run` has ended: gives up what waits."""
        samples = self._queue.clear()
        if samples:
            log.warning("%s: %d samples were not sent before the end", self._label, samples)
            self.dropped(samples, "shutdown")
        await self._sender.close()

    async def _work(self, lane: int) -> None:
        while True:
            batch = await self._queue.take(lane)
            accepted = 0
            try:
                accepted = await self._deliver(batch)
            finally:
                self._queue.done(batch, delivered=accepted > 0)

    async def _deliver(self, batch: Batch) -> int:
        """Returns how many samples the target took."""
        waiting, accepted, divided = [batch], 0, False
        try:
            while waiting:
                samples, answer = await self._answered(waiting[-1])
                part = waiting.pop()
                if answer.divisible and len(part.rows) > 1 and self._clock.monotonic_s() >= self._undivided_until_s:
                    divided, middle = True, len(part.rows) // 2
                    waiting += [part.part(middle, len(part.rows)), part.part(0, middle)]
                    continue
                taken = samples - answer.rejected if answer.verdict is Verdict.SENT else answer.written
                # The target says how many, and may say anything.
                taken = min(max(taken, 0), samples)
                accepted += taken
                self._metrics.sent(taken)
                self._lost(samples - taken, answer)
                self.dropped(part.samples - samples, "duplicate")
                self._queue.settled(part.samples)
        except asyncio.CancelledError:
            self._given_up(waiting, "shutdown")
            raise
        except Exception:
            log.exception("%s: dropping samples that cannot be sent", self._label)
            self._given_up(waiting, "internal")
        if divided and not accepted:
            self._undivided_until_s = self._clock.monotonic_s() + _UNDIVIDED_S
        return accepted

    async def _answered(self, batch: Batch) -> tuple[int, Answer]:
        """Sends until there is an answer that is final; returns how many samples the request had."""
        tries = 0
        while True:
            held = await self._encoded(batch)
            try:
                answer = await self._sender.send(held.encoded.body)
            except BaseException:  # cancelled, above all: it is on its way, or there already
                self._metrics.in_doubt(held.encoded.samples)
                raise
            if answer.in_doubt:
                self._metrics.in_doubt(held.encoded.samples)
            self._metrics.request(answer.code)
            if answer.verdict is not Verdict.RETRY:
                if not self._answers:
                    self._answers = True
                    log.info("%s answers again", self._label)
                return held.encoded.samples, answer
            if self._answers:
                self._answers = False
                log.warning("%s does not take samples, trying again: %s %s", self._label, answer.code, answer.text)
            tries += 1
            await self._sleep(backoff_s(tries, answer.retry_after_s, random.random()))

    async def _encoded(self, batch: Batch) -> Held:
        for row in batch.rows:
            if not row.selection.is_prepared:
                row.selection.prepared(self._encoder)
                # It takes a millisecond or two: the streams of agents come between.
                await asyncio.sleep(0)
        return batch.encoded(self._encoder)

    def _given_up(self, waiting: Sequence[Batch], reason: str) -> None:
        samples = sum(part.samples for part in waiting)
        self.dropped(samples, reason)
        self._queue.settled(samples)

    def _lost(self, samples: int, answer: Answer) -> None:
        self._metrics.failed(samples, answer.reason)
        now_s = self._clock.monotonic_s()
        if samples and now_s - self._refused_log_s >= _REFUSED_LOG_S:
            self._refused_log_s = now_s
            log.warning("%s refused %d samples: %s %s", self._label, samples, answer.code, answer.text)
