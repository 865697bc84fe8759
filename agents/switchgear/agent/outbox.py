"""What waits for the collector: live blocks in memory, everything that is not acked on disk."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from switchgear.agent.disk import Disk
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Block, Sampler
from switchgear.agent.spool import Spool
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Blocks that a slow connection may be behind before it goes on with the newest; the others come behind, from the disk.
LIVE_MAX = 16


class Outbox:
    """Of one event loop; only `wake_from_thread` may be called from elsewhere.

    spool: events. samples: blocks, of the sampler's epoch; all calls of it go through `disk`.
    """

    def __init__(self, sampler: Sampler, spool: Spool, samples: SampleSpool) -> None:
        self.sampler = sampler
        self.spool = spool
        self.samples = samples
        self.disk = Disk()
        #: Made while the collector listens, and not sent yet.
        self.blocks: deque[Block] = deque()
        self.blocks_made = 0
        self.blocks_sent = 0
        self.wake = asyncio.Event()
        #: The disk may have blocks for the collector.
        self.spilled = asyncio.Event()
        self._associations = pb.Associations()
        self._loop = asyncio.get_running_loop()
        self._listening = False
        self._live_acked = False
        #: Newest block that any collector acked.
        self.acked_sequence = 0
        # Whether the newest block is in `blocks` or was sent, so that the next one makes sense without being a keyframe.
        self._in_chain = False
        # Sequences that were sent on this connection and are not acked, as [first, last]: one run for each chain.
        self._under_way: deque[list[int]] = deque()

    @property
    def associations(self) -> pb.Associations:
        """Who uses the GPUs, the whole table; to be replaced, not changed."""
        return self._associations

    @associations.setter
    def associations(self, table: pb.Associations) -> None:
        if table != self._associations:
            self._associations = table
            self.wake.set()

    def wake_from_thread(self) -> None:
        """Tells the stream that the spool has an event."""
        try:
            self._loop.call_soon_threadsafe(self.wake.set)
        except RuntimeError:
            pass  # the loop has closed: the event waits on disk for the next start

    def put(self, block: Block) -> None:
        """Keeps the block, and queues it when the collector listens."""
        self.blocks_made += 1
        live = self._listening and (block.keyframe or self._in_chain)
        if live and len(self.blocks) == LIVE_MAX:
            self.begin_chain()
            live = False
        self.disk.submit(partial(self.samples.append, block, self.sampler.keys, live=live))
        if live:
            self._in_chain = True
            self.blocks.append(block)
            self.wake.set()

    def begin_chain(self) -> None:
        """What waits is left to the disk; the live stream goes on at the next block, which will be a keyframe."""
        self._listening = True
        self._in_chain = False
        self.blocks.clear()
        self.sampler.restart()
        self.spilled.set()

    def send_newest(self) -> None:
        """Queues the newest block as a keyframe, so that a collector that comes back need not wait for the next tick."""
        if self.sampler.sequence > self.acked_sequence:
            self.blocks.append(self.sampler.keyframe())
            self.wake.set()

    def connection_lost(self) -> None:
        """Nobody listens; what is under way may have arrived or not."""
        self._listening = self._in_chain = self._live_acked = False
        self.blocks.clear()
        self._under_way.clear()

    def sent(self, block: Block) -> None:
        self.blocks_sent += 1
        if self._under_way and self._under_way[-1][1] == block.sequence - 1:
            self._under_way[-1][1] = block.sequence
        else:
            self._under_way.append([block.sequence, block.sequence])

    def acked(self, epoch: str, sequence: int) -> None:
        """The collector has all blocks of `epoch` that were sent on this connection up to `sequence`."""
        while self._under_way and self._under_way[0][0] <= sequence:
            first, last = self._under_way[0]
            done = min(last, sequence)
            self.disk.submit(partial(self.samples.delivered, epoch, first, done))
            if done == last and len(self._under_way) > 1:
                self._under_way.popleft()
                self.spilled.set()  # what was left to the disk between two chains is no longer under way
            else:
                self._under_way[0][0] = done + 1
        self.acked_sequence = max(sequence, self.acked_sequence)
        if not self._live_acked:
            self._live_acked = True
            self.spilled.set()

    @property
    def backlog_before(self) -> int:
        """Blocks below this sequence are not under way; 0 until a block of this connection was acked: live ones go first."""
        return self._under_way[0][0] if self._live_acked and self._under_way else 0

    def close(self) -> None:
        self.disk.submit(self.samples.close)
        self.disk.close()
