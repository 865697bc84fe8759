"""Batches that wait for a target, within a number of bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from switchgear.collector.export.rows import Batch

_NS_PER_S = 1e9


class _Lane:
    def __init__(self) -> None:
        self.live = deque[Batch]()
        self.late = deque[Batch]()
        self.waiting = asyncio.Event()
        self.made_unix_ns = 0
        self.delivered_unix_ns = 0


class BatchQueue:
    """In order within a lane, what is late behind all that is live. Beyond `bytes_max` the oldest go: those of an outage first.

    What is under way is not given up for want of room, but counts until it is done. dropped: called with the number of samples of each that is given up.
    """

    def __init__(self, lanes: int, bytes_max: int, dropped: Callable[[int], None]) -> None:
        self._lanes = [_Lane() for _ in range(lanes)]
        self._bytes_max = bytes_max
        self._dropped = dropped
        self._batches = 0
        self.nbytes = 0
        #: That wait or are under way.
        self.samples = 0
        #: Set as long as no batch waits or is under way.
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def lag_s(self) -> float:
        """Of the live samples: the newest made less the newest delivered, of the lane where that is most."""
        return max((lane.made_unix_ns - lane.delivered_unix_ns) / _NS_PER_S for lane in self._lanes)

    def put(self, batch: Batch) -> None:
        lane = self._lanes[batch.lane]
        if batch.late:
            lane.late.append(batch)
        else:
            lane.live.append(batch)
            # So that before the first delivery the lag is that of the first batch.
            lane.delivered_unix_ns = lane.delivered_unix_ns or batch.oldest_unix_ns
            lane.made_unix_ns = max(lane.made_unix_ns, batch.newest_unix_ns)
        lane.waiting.set()
        self._batches += 1
        self.idle.clear()
        self.nbytes += batch.nbytes
        self.samples += batch.samples
        while self.nbytes > self._bytes_max and (oldest := self._oldest()):
            given_up = oldest.popleft()
            self.done(given_up, delivered=False)
            self.settled(given_up.samples)
            self._dropped(given_up.samples)

    async def take(self, lane: int) -> Batch:
        """The next batch of a lane; waits for one."""
        queue = self._lanes[lane]
        while not (queue.live or queue.late):
            queue.waiting.clear()
            await queue.waiting.wait()
        return queue.live.popleft() if queue.live else queue.late.popleft()

    def settled(self, samples: int) -> None:
        """It is known, and counted elsewhere, what became of so many samples of a batch that was taken."""
        self.samples -= samples

    def done(self, batch: Batch, *, delivered: bool) -> None:
        """A batch that was taken needs nothing more. delivered: whether the target has it, or a part of it."""
        self._batches -= 1
        self.nbytes -= batch.nbytes
        if not self._batches:
            self.idle.set()
        if delivered and not batch.late:
            lane = self._lanes[batch.lane]
            lane.delivered_unix_ns = max(lane.delivered_unix_ns, batch.newest_unix_ns)

    def clear(self) -> int:
        """Gives up all that waits; returns how many samples that were."""
        samples = 0
        for lane in self._lanes:
            for waiting in (lane.live, lane.late):
                while waiting:
                    batch = waiting.popleft()
                    self.done(batch, delivered=False)
                    samples += batch.samples
        self.settled(samples)
        return samples

    def _oldest(self) -> deque[Batch] | None:
        for kind in ([lane.late for lane in self._lanes], [lane.live for lane in self._lanes]):
            if waiting := [batches for batches in kind if batches]:
                return min(waiting, key=lambda batches: batches[0].opened_s)
        return None
