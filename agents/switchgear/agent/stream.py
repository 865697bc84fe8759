"""The telemetry stream to the collector: events as soon as they happen, blocks as they are made, and behind them what it missed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio

from switchgear.agent.deltas import plain_keyframe
from switchgear.agent.messages import dictionary_message, event_message, packed
from switchgear.agent.outbox import Outbox
from switchgear.agent.sample_spool import Chunk
from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.reconnect import Homing, keep_connected
from switchgear.core.tls import TlsFiles
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

#: What this agent can send beyond the first release's messages.
FEATURES = (
    pb.AgentHello.DELTAS,
    pb.AgentHello.BACKLOG,
    pb.AgentHello.REDIRECT,
    pb.AgentHello.BLOCKS,
    pb.AgentHello.LABEL_SETS,
)
_EVENTS_BATCH = 256
#: From one backlog to the next: a few hundred blocks a second at most.
_BACKLOG_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who streams: `nodes/{node}`, the boot and spool, and the epoch of the dictionary."""

    node: str
    boot_id: str
    epoch: str
    agent_version: str


class TelemetryStream:
    """Keeps a stream to the collector at `address`, or to the one that it names.

    interval_s_min: what the collector asked for at last; 0 when it did not.
    """

    def __init__(
        self, address: str, identity: Identity, outbox: Outbox, clock: Clock, *, tls: TlsFiles | None = None
    ) -> None:
        self._homing = Homing(address)
        self._tls = tls
        self._identity = identity
        self._outbox = outbox
        self._clock = clock
        self.interval_s_min = 0.0
        self.connected = False

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        await keep_connected("telemetry stream", self._connect, self._clock)

    async def _connect(self) -> str:
        redirect = ""
        try:
            async with rpc.channel(self._homing.address, self._tls) as channel:
                redirect = await self._stream(TelemetryServiceStub(channel))
        finally:
            if redirect:
                self._homing.redirected(redirect)
            else:
                self._homing.lost()
        return f"sent on to {redirect}" if redirect else ""

    async def _stream(self, stub: TelemetryServiceStub) -> str:
        """Streams until the call ends; returns where the collector sent this agent, "" when nowhere."""
        begin: Any = stub.Stream  # the stubs know only the form that is given an iterator
        call: grpc.aio.StreamStreamCall[pb.AgentMessage, pb.CollectorMessage] = begin()
        connection = _Connection(call, self._outbox, self._identity)
        redirect = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = [tasks.create_task(part) for part in (connection.send(), connection.send_backlog())]
                async for message in call:
                    self.connected = True
                    if message.HasField("throttle"):
                        self.interval_s_min = message.throttle.interval_seconds_min
                    elif message.HasField("redirect"):
                        redirect = message.redirect.address
                        break
                    else:
                        connection.receive(message)
                for task in sending:
                    task.cancel()
            return redirect
        finally:
            self.connected = False
            self._outbox.connection_lost()
            call.cancel()


class _Connection:
    """What has been said on one stream."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[pb.AgentMessage, pb.CollectorMessage],
        outbox: Outbox,
        identity: Identity,
    ) -> None:
        self._call = call
        self._outbox = outbox
        self._identity = identity
        self._series_sent = 0
        self._event_sent = 0
        self._associations_sent: pb.Associations | None = None
        self._resync = False
        #: What the collector takes of `FEATURES`. One of the release before welcomes nobody, and refuses what it does not know.
        self._features: frozenset[int] = frozenset()
        self._welcomed = False
        self._backlog_acked = asyncio.Event()
        # gRPC takes one message at a time.
        self._writing = asyncio.Lock()

    async def send(self) -> None:
        """Events, associations and live blocks as they come, until the call ends."""
        identity = self._identity
        hello = pb.AgentHello(
            node=identity.node,
            boot_id=identity.boot_id,
            epoch=identity.epoch,
            agent_version=identity.agent_version,
            features=FEATURES,
        )
        try:
            await self._write(hello=hello)
            self._outbox.begin_chain()
            await self._send()
        except asyncio.InvalidStateError:
            pass  # the call has ended: the reader says why

    async def send_backlog(self) -> None:
        """What the collector missed, oldest first, a little at a time; what is live never waits for it."""
        outbox, samples = self._outbox, self._outbox.samples
        await outbox.disk.call(samples.begin_reading)
        number, told = 0, False
        while True:
            outbox.spilled.clear()
            before = outbox.backlog_before if pb.AgentHello.BACKLOG in self._features else 0
            chunk = await outbox.disk.call(partial(samples.next_chunk, before)) if before else None
            if chunk is None and not told:
                await outbox.spilled.wait()
                continue
            number += 1
            message = (
                _backlog(number, chunk, label_sets=self._has_label_sets)
                if chunk is not None
                else pb.Backlog(number=number, last=True)
            )
            told = chunk is not None
            self._backlog_acked.clear()
            try:
                await self._write(backlog=message)
            except asyncio.InvalidStateError:
                return
            await self._backlog_acked.wait()
            if chunk is None:  # the collector has let go of the chain
                await outbox.disk.call(samples.begin_reading)
                continue
            await outbox.disk.call(
                partial(samples.delivered, chunk.epoch, chunk.fresh_from, chunk.last, lost=chunk.lost)
            )
            await asyncio.sleep(_BACKLOG_PAUSE_S)

    def receive(self, message: pb.CollectorMessage) -> None:
        outbox = self._outbox
        match message.WhichOneof("kind"):
            case "welcome":
                self._features = frozenset(message.welcome.features)
                self._welcomed = True
                outbox.begin_chain()
                outbox.send_newest()
            case "block_ack":
                outbox.acked(self._identity.epoch, message.block_ack.sequence)
            case "backlog_ack":
                self._backlog_acked.set()
            case "event_ack":
                ack = message.event_ack
                # It may rewrite its file. One that is dropped behind a disk that hangs costs a repetition, which is stored once.
                outbox.disk.submit(partial(outbox.spool.ack, ack.boot_id, ack.source, ack.sequence))
            case "resync":
                self._resync = True
                outbox.wake.set()

    async def _send(self) -> None:
        outbox = self._outbox
        while True:
            outbox.wake.clear()
            if self._resync:
                self._resync = False
                self._series_sent = 0
                outbox.begin_chain()
            # Events first: a fault must not wait behind samples.
            while self._event_sent < (newest := outbox.spool.newest):
                events = outbox.spool.pending(self._event_sent, _EVENTS_BATCH)
                for _, event in events:
                    await self._write(event=event_message(event))
                self._event_sent = events[-1][0] if events else newest
            await self._send_blocks()
            wanted = self._welcomed and self._series_sent
            if wanted and (table := outbox.associations) is not self._associations_sent:
                await self._write(associations=table)
                self._associations_sent = table
            await outbox.wake.wait()

    async def _send_blocks(self) -> None:
        outbox, sampler = self._outbox, self._outbox.sampler
        while outbox.blocks:
            block = outbox.blocks.popleft()
            deltas = pb.AgentHello.DELTAS in self._features
            if not deltas and outbox.blocks:
                continue  # plain keyframes hold the newest values
            if block.series > self._series_sent:
                new = dictionary_message(sampler.keys, self._series_sent, block.series)
                self._series_sent = block.series
                await self._write(dictionary=packed(new, label_sets=self._has_label_sets) if deltas else new)
            outbox.sent(block)
            if deltas:
                together = [pb.Block.FromString(block.message)]
                # What waited while the connection was slow.
                while (
                    pb.AgentHello.BLOCKS in self._features and outbox.blocks and outbox.blocks[0].series == block.series
                ):
                    outbox.sent(waited := outbox.blocks.popleft())
                    together.append(pb.Block.FromString(waited.message))
                if len(together) == 1:
                    await self._write(block=together[0])
                else:
                    await self._write(blocks=pb.Blocks(blocks=together))
            else:
                latest = sampler.latest()[: block.series]
                await self._write(block=plain_keyframe(latest, block.time_unix_ns, block.sequence))

    @property
    def _has_label_sets(self) -> bool:
        return pb.AgentHello.LABEL_SETS in self._features

    async def _write(self, **kind: Any) -> None:
        async with self._writing:
            await self._call.write(pb.AgentMessage(**kind))


def _backlog(number: int, chunk: Chunk, *, label_sets: bool) -> pb.Backlog:
    return pb.Backlog(
        number=number,
        epoch=chunk.epoch,
        dictionary=packed(chunk.dictionary, label_sets=label_sets),
        blocks=[pb.Block.FromString(block) for block in chunk.blocks],
        fresh_from=chunk.fresh_from,
        lost=chunk.lost,
    )
