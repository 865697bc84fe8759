"""The telemetry stream to the collector: events as soon as they happen, blocks as they are made, both until acked."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc.aio

from switchgear.agent.readings import Kind, SeriesKey
from switchgear.agent.sampler import Block, Sampler
from switchgear.agent.spool import Event, Spool
from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.reconnect import keep_connected
from switchgear.core.tls import TlsFiles
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

#: Four minutes at 1 Hz: a restart of the collector loses no sample, a longer outage is a counted gap.
BLOCKS_MAX = 240
_EVENTS_BATCH = 256


class Outbox:
    """What waits for the collector. Of one event loop; only `wake_from_thread` may be called from elsewhere."""

    def __init__(self, sampler: Sampler, spool: Spool) -> None:
        self.sampler = sampler
        self.spool = spool
        self.blocks: deque[Block] = deque()
        self.blocks_sent = 0
        #: Blocks that were made and given up: the collector sees them as a gap.
        self.blocks_lost = 0
        self.wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake_from_thread(self) -> None:
        """Tells the stream that the spool has an event."""
        try:
            self._loop.call_soon_threadsafe(self.wake.set)
        except RuntimeError:
            pass  # the loop has closed: the event waits on disk for the next start

    def put(self, block: Block) -> None:
        """Queues a block; when the queue is full everything before the next keyframe is given up."""
        self.blocks.append(block)
        if len(self.blocks) > BLOCKS_MAX:
            self._lose_first()
            self.drop_to_keyframe()
        self.wake.set()

    def drop_to_keyframe(self) -> None:
        """Gives up the blocks that mean nothing without what went before them."""
        while self.blocks and not self.blocks[0].keyframe:
            self._lose_first()

    def ack_blocks(self, sequence: int) -> None:
        while self.blocks and self.blocks[0].sequence <= sequence:
            self.blocks.popleft()

    def _lose_first(self) -> None:
        self.blocks.popleft()
        self.blocks_lost += 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who streams: `nodes/{node}`, the boot and spool, and the epoch of the dictionary."""

    node: str
    boot_id: str
    epoch: str
    agent_version: str


class TelemetryStream:
    """Keeps a stream to the collector at `address`.

    interval_s_min: what the collector asked for at last; 0 when it did not.
    """

    def __init__(
        self, address: str, identity: Identity, outbox: Outbox, clock: Clock, *, tls: TlsFiles | None = None
    ) -> None:
        self._address = address
        self._tls = tls
        self._identity = identity
        self._outbox = outbox
        self._clock = clock
        self.interval_s_min = 0.0
        self.connected = False

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        async with rpc.channel(self._address, self._tls) as channel:
            stub = TelemetryServiceStub(channel)
            await keep_connected("telemetry stream", lambda: self._connect(stub), self._clock)

    async def _connect(self, stub: TelemetryServiceStub) -> None:
        begin: Any = stub.Stream  # the stubs know only the form that is given an iterator
        call: grpc.aio.StreamStreamCall[pb.AgentMessage, pb.CollectorMessage] = begin()
        connection = _Connection(call, self._outbox)
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(connection.send(self._identity))
                async for message in call:
                    self.connected = True
                    if message.HasField("throttle"):
                        self.interval_s_min = message.throttle.interval_seconds_min
                    else:
                        await connection.receive(message)
                sending.cancel()
        finally:
            self.connected = False
            call.cancel()


class _Connection:
    """What has been said on one stream."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.AgentMessage, pb.CollectorMessage], outbox: Outbox) -> None:
        self._call = call
        self._outbox = outbox
        self._series_sent = 0
        self._block_sent = 0
        self._event_sent = 0
        self._resync = False

    async def send(self, identity: Identity) -> None:
        try:
            await self._greet(identity)
            await self._send()
        except asyncio.InvalidStateError:
            pass  # the call has ended: the reader says why

    async def _greet(self, identity: Identity) -> None:
        hello = pb.AgentHello(
            node=identity.node,
            boot_id=identity.boot_id,
            epoch=identity.epoch,
            agent_version=identity.agent_version,
        )
        await self._call.write(pb.AgentMessage(hello=hello))
        self._start_over()

    async def receive(self, message: pb.CollectorMessage) -> None:
        match message.WhichOneof("kind"):
            case "block_ack":
                self._outbox.ack_blocks(message.block_ack.sequence)
            case "event_ack":
                ack = message.event_ack
                # In a thread, like every use of the spool: it may rewrite its file, and whoever syncs one holds up the others.
                await asyncio.to_thread(self._outbox.spool.ack, ack.boot_id, ack.source, ack.sequence)
            case "resync":
                self._resync = True
                self._outbox.wake.set()

    async def _send(self) -> None:
        outbox = self._outbox
        while True:
            outbox.wake.clear()
            if self._resync:
                self._resync = False
                self._series_sent = 0
                self._start_over()
            # Events first: a fault must not wait behind samples.
            while events := await asyncio.to_thread(outbox.spool.pending, self._event_sent, _EVENTS_BATCH):
                for ordinal, event in events:
                    await self._call.write(pb.AgentMessage(event=_event(event)))
                    self._event_sent = ordinal
            await self._send_blocks()
            await outbox.wake.wait()

    def _start_over(self) -> None:
        """The collector may know nothing: what it gets next is a keyframe."""
        outbox = self._outbox
        outbox.drop_to_keyframe()
        if not outbox.blocks and outbox.sampler.dictionary():
            outbox.put(outbox.sampler.keyframe())
        self._block_sent = 0

    async def _send_blocks(self) -> None:
        for block in list(self._outbox.blocks):
            if block.sequence <= self._block_sent:
                continue
            keys = self._outbox.sampler.dictionary()
            if len(keys) > self._series_sent:
                new = [_series(number, keys[number]) for number in range(self._series_sent, len(keys))]
                await self._call.write(pb.AgentMessage(dictionary=pb.Dictionary(series=new)))
                self._series_sent = len(keys)
            await self._call.write(pb.AgentMessage(block=_block(block)))
            self._block_sent = block.sequence
            self._outbox.blocks_sent += 1


_KINDS = {Kind.GAUGE: pb.Series.GAUGE, Kind.COUNTER: pb.Series.COUNTER}


def _series(series_id: int, key: SeriesKey) -> pb.Series:
    return pb.Series(id=series_id, metric=key.metric, unit=key.unit, kind=_KINDS[key.kind], labels=dict(key.labels))


def _block(block: Block) -> pb.Block:
    return pb.Block(
        time_unix_ns=block.time_unix_ns,
        sequence=block.sequence,
        keyframe=block.keyframe,
        series_ids=block.series_ids,
        values_f64=block.values_f64,
        unknown=[pb.UnknownSeries(id=series_id, reason=reason) for series_id, reason in block.unknown],
    )


def _event(event: Event) -> pb.Event:
    return pb.Event(
        boot_id=event.boot_id,
        source=event.source,
        sequence=event.sequence,
        time_unix_ns=event.time_unix_ns,
        kind=event.kind,
        gpu=event.gpu,
        code=event.code,
        text=event.text,
        simulated=event.simulated,
        pci=event.pci,
        detail=event.detail,
    )
