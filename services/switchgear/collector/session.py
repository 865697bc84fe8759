"""What one agent says on one stream, after its hello."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from switchgear.collector import messages
from switchgear.collector.backlog import Backlog
from switchgear.collector.blocks import protocol
from switchgear.collector.clocks import Clocks
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.event_writer import EventWriter
from switchgear.collector.ingest_settings import IngestSettings
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.model import Event
from switchgear.collector.outgoing import Outgoing
from switchgear.collector.pressure import Pressure
from switchgear.collector.rates import Bucket
from switchgear.collector.taps import Taps
from switchgear.collector.turns import Turns, Work
from switchgear.collector.windows import NodeWindow, Outcome, Windows
from switchgear.core.clock import Clock
from switchgear.core.errors import Reason, ResourceExhausted
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: What an agent may send at once after a connection that was slow: many times what it keeps for one.
BURST_BLOCKS_MAX = 480
#: An agent that ignores the throttle for so many blocks more is cut off.
DEBT_BLOCKS_MAX = 2000
#: A fault that takes a node down is told in hundreds of lines.
BURST_EVENTS_MAX = 500
#: What an agent that is too fast is asked for.
_INTERVAL_S_MIN = 1.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What the streams of one collector have in common."""

    windows: Windows
    writer: EventWriter
    clock: Clock
    metrics: CollectorMetrics
    settings: IngestSettings
    taps: Taps
    clocks: Clocks
    pressure: Pressure
    #: For dictionaries.
    turns: Turns
    #: For what agents bring of the time before.
    late: Turns


class Session:
    """The messages of one stream, in their order."""

    def __init__(self, node: str, window: NodeWindow, outgoing: Outgoing, shared: Shared) -> None:
        self._node = node
        self._window = window
        self._outgoing = outgoing
        self._shared = shared
        self._node_clock = shared.clocks.of(node)
        self._asked_to_resync = False
        #: Sequence of the newest block of this stream.
        self._newest = -1
        now_s = outgoing.heard_s
        self._blocks = Bucket(shared.settings.blocks_per_second_max, BURST_BLOCKS_MAX, now_s)
        self._events = Bucket(shared.settings.events_per_second_max, BURST_EVENTS_MAX, now_s)
        #: The backlog that waits.
        self._late: Work | None = None
        self._backlog = Backlog(window, shared.windows, shared.taps)

    def close(self) -> None:
        """The stream has ended."""
        if self._late is not None:
            self._late.cancel()
        self._backlog.close()

    async def take(self, message: pb.AgentMessage, now_s: float) -> None:
        """Raises Invalid (STREAM_PROTOCOL) for what breaks the protocol, ResourceExhausted (LIMIT_EXCEEDED) for what is too much."""
        match message.WhichOneof("kind"):
            case "block":
                await self._take_blocks([message.block], now_s)
            case "blocks":
                if len(message.blocks.blocks) > messages.BLOCKS_MAX:
                    raise protocol(f"at most {messages.BLOCKS_MAX} blocks go together")
                await self._take_blocks(message.blocks.blocks, now_s)
            case "event":
                await self._take_event(messages.event_of(self._node, message.event), now_s)
            case "dictionary":
                await self._shared.turns.turn()
                first_id, keys = dictionary_of(message.dictionary)
                self._shared.windows.define(self._window, first_id, keys)
            case "associations":
                self._window.associations = messages.associations_of(message.associations)
            case "backlog":
                self._put_backlog(message.backlog)
            case _:
                raise protocol("the first message, and no other, must be a hello")

    async def _take_blocks(self, blocks: Iterable[pb.Block], now_s: float) -> None:
        for block in blocks:
            self._take_block(block, now_s)
        if self._node_clock.is_skewed is not self._shared.clocks.is_told_wrong(self._node):
            await self._tell_clock()

    def _take_block(self, message: pb.Block, now_s: float) -> None:
        self._spend(now_s)
        window, shared = self._window, self._shared
        arrival_unix_ns = shared.clock.unix_ns()
        time_unix_ns = message.time_unix_ns
        if message.sequence > self._newest:  # one that comes again says nothing about the clock, and becomes no row
            self._newest = message.sequence
            # Two rows of one time would be one for whoever stores them.
            waited = shared.turns.any_wait or shared.pressure.is_behind
            corrected = self._node_clock.corrected(time_unix_ns, arrival_unix_ns, waited=waited)
            time_unix_ns = max(corrected, window.time_unix_ns + 1)
        lost = window.blocks_lost
        outcome = window.apply(messages.block_of(message, time_unix_ns))
        if outcome is Outcome.APPLIED:
            shared.taps.row(window)
            shared.metrics.block_taken(len(window.series), (arrival_unix_ns - time_unix_ns) / 1e9)
        elif outcome is Outcome.NEED_KEYFRAME and not self._asked_to_resync:
            self._outgoing.resync(f"blocks before {message.sequence} are missing")
        self._asked_to_resync = outcome is Outcome.NEED_KEYFRAME
        if outcome is not Outcome.APPLIED or window.blocks_lost != lost:
            shared.metrics.block_missed(outcome, window.blocks_lost - lost)
        self._outgoing.ack_block(message.sequence, now_s)

    async def _take_event(self, event: Event, now_s: float) -> None:
        if (left := self._events.spend(now_s)) < 0:
            # What is not read waits at the agent, on its disk.
            self._shared.metrics.events_delayed.inc()
            await asyncio.sleep(-left / self._events.per_s)
        await self._shared.writer.put(event, self._outgoing.ack_event)

    def _put_backlog(self, message: pb.Backlog) -> None:
        if self._outgoing.backlog_open:
            raise protocol("one backlog at a time: wait for the ack of the one before")
        self._outgoing.backlog_open = True
        self._late = self._shared.late.put(partial(self._take_backlog, message))

    def _take_backlog(self, message: pb.Backlog) -> None:
        try:
            late = self._backlog.take(message, self._node_clock.offset_ns)
        except Exception as error:  # it ends the stream, as one that `take` raises does
            self._outgoing.close(error)
            return
        self._shared.metrics.backlog(late, message.lost)
        self._outgoing.ack_backlog(message.number)

    async def _tell_clock(self) -> None:
        event = self._shared.clocks.changed(self._node, self._node_clock, self._shared.clock.unix_ns())
        if event is not None:
            await self._shared.writer.put(event, lambda _: None)

    def _spend(self, now_s: float) -> None:
        """One block of the rate that an agent may have."""
        left = self._blocks.spend(now_s)
        if left < -DEBT_BLOCKS_MAX:
            raise ResourceExhausted(
                f"more than {self._blocks.per_s:g} blocks a second and no regard for the throttle; sample less often",
                Reason.LIMIT_EXCEEDED,
            )
        if -1 <= left < 0:
            self._outgoing.throttle(max(_INTERVAL_S_MIN, self._shared.pressure.interval_s_min))
            self._outgoing.wake.set()
