"""The collector's end of the telemetry streams: what agents say is checked, taken in and acked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc.aio

from switchgear.collector import messages
from switchgear.collector.backlog import Backlog, Pace
from switchgear.collector.blocks import protocol
from switchgear.collector.event_writer import EventWriter
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.model import Event
from switchgear.collector.windows import NodeWindow, Outcome, Windows
from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, AlreadyExists, Reason, ResourceExhausted, SwitchgearError
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Sustained rate of a stream; an agent that samples faster is told to slow down.
BLOCKS_PER_S_MAX = 20.0
#: What an agent may send at once after an outage: its whole queue, twice.
BURST_BLOCKS_MAX = 480
#: So long a stream's node is its own although nothing comes: many samples missed, the silence after which a node counts as gone.
SECOND_AGENT_S = 10.0
#: An agent that ignores the throttle for so many blocks more is cut off.
DEBT_BLOCKS_MAX = 2000
#: What this collector takes beyond the first release's messages.
FEATURES = frozenset({pb.AgentHello.DELTAS, pb.AgentHello.BACKLOG})


class Outgoing:
    """What one stream has to tell its agent. Acks are cumulative, so only the newest of each waits: it cannot grow."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        #: Of the stream's hello, and when it last said something.
        self.epoch = ""
        self.heard_s = 0.0
        self._block = 0
        self._backlog = 0
        #: A backlog came that is not acked yet.
        self.backlog_open = False
        self._events: dict[tuple[str, str], int] = {}
        self._others: dict[str, pb.CollectorMessage] = {}
        self.error: SwitchgearError | None = None

    def ack_block(self, sequence: int) -> None:
        self._block = max(self._block, sequence)
        self.wake.set()

    def ack_backlog(self, number: int) -> None:
        self._backlog = number
        self.backlog_open = False
        self.wake.set()

    def ack_event(self, event: Event) -> None:
        self._events[event.boot_id, event.source] = event.sequence
        self.wake.set()

    def welcome(self, features: Iterable[pb.AgentHello.Feature]) -> None:
        self._others["welcome"] = pb.CollectorMessage(welcome=pb.Welcome(features=features))
        self.wake.set()

    def resync(self, reason: str) -> None:
        self._others["resync"] = pb.CollectorMessage(resync=pb.Resync(reason=reason))
        self.wake.set()

    def throttle(self, interval_s_min: float) -> None:
        throttle = pb.Throttle(interval_seconds_min=interval_s_min)
        self._others["throttle"] = pb.CollectorMessage(throttle=throttle)
        self.wake.set()

    def close(self, error: SwitchgearError) -> None:
        self.error = error
        self.wake.set()

    def take(self) -> list[pb.CollectorMessage]:
        """Everything that waits."""
        self.wake.clear()
        waiting = [
            pb.CollectorMessage(event_ack=pb.EventAck(boot_id=boot_id, source=source, sequence=sequence))
            for (boot_id, source), sequence in self._events.items()
        ]
        if (welcome := self._others.pop("welcome", None)) is not None:
            waiting.insert(0, welcome)
        waiting += self._others.values()
        if self._block:
            waiting.append(pb.CollectorMessage(block_ack=pb.BlockAck(sequence=self._block)))
        if self._backlog:
            waiting.append(pb.CollectorMessage(backlog_ack=pb.BacklogAck(number=self._backlog)))
        self._block = self._backlog = 0
        self._events.clear()
        self._others.clear()
        return waiting


class Ingest:
    """All streams of this collector.

    connected, disconnected: called with `nodes/{node}` when its agent comes and goes; only the newest stream of a node counts.
    """

    def __init__(
        self,
        windows: Windows,
        writer: EventWriter,
        clock: Clock,
        metrics: CollectorMetrics,
        *,
        connected: Callable[[str], Awaitable[None]],
        disconnected: Callable[[str], None],
    ) -> None:
        self._windows = windows
        self._writer = writer
        self._clock = clock
        self._metrics = metrics
        self._connected = connected
        self._disconnected = disconnected
        self._streams: dict[str, Outgoing] = {}
        self._backlog_pace = Pace(clock)

    async def stream(
        self, requests: AsyncIterator[pb.AgentMessage], _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.CollectorMessage]:
        """Serves one agent until it hangs up, breaks the protocol or is replaced by a newer stream of its node."""
        outgoing = Outgoing()
        reader = asyncio.create_task(self._read(requests, outgoing))
        reader.add_done_callback(lambda _: outgoing.wake.set())
        try:
            while True:
                await outgoing.wake.wait()
                for message in outgoing.take():
                    yield message
                if outgoing.error is not None:
                    raise outgoing.error
                if reader.done():
                    reader.result()
                    return
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.AgentMessage], outgoing: Outgoing) -> None:
        hello: pb.AgentHello | None = None
        async for first in requests:
            hello = messages.hello_of(first)
            break
        if hello is None:
            return
        node = hello.node
        outgoing.epoch, outgoing.heard_s = hello.epoch, self._clock.monotonic_s()
        if (older := self._streams.get(node)) is not None:
            if older.epoch != hello.epoch and outgoing.heard_s - older.heard_s <= SECOND_AGENT_S:
                raise AlreadyExists(
                    f"another agent streams for {node}; stop it, or give this one an id of its own with --node",
                    Reason.ALREADY_EXISTS,
                    name=node,
                )
            older.close(Aborted(f"a newer stream of {node} has come; run one agent a node", Reason.STREAM_PROTOCOL))
        self._streams[node] = outgoing
        try:
            await self._connected(node)
            features = FEATURES.intersection(hello.features)
            if hello.features:
                outgoing.welcome(sorted(features))
            window = self._windows.connect(node, hello.epoch)
            window.gaps_lost = pb.AgentHello.BACKLOG not in features
            session = _Session(self._windows, window, outgoing, self._clock)
            backlog = Backlog(window)
            async for message in requests:
                outgoing.heard_s = self._clock.monotonic_s()
                match message.WhichOneof("kind"):
                    case "block":
                        self._metrics.block(session.block(message.block))
                    case "event":
                        await self._writer.put(messages.event_of(node, message.event), outgoing.ack_event)
                    case "dictionary":
                        session.dictionary(message.dictionary)
                    case "associations":
                        window.associations = messages.associations_of(message.associations)
                    case "backlog":
                        self._take_backlog(backlog, message.backlog, outgoing)
                    case _:
                        raise protocol("the first message, and no other, must be a hello")
        finally:
            if self._streams.get(node) is outgoing:
                del self._streams[node]
                self._windows.disconnect(node)
                self._disconnected(node)

    def _take_backlog(self, backlog: Backlog, message: pb.Backlog, outgoing: Outgoing) -> None:
        if outgoing.backlog_open:
            raise protocol("one backlog at a time: wait for the ack of the one before")
        outgoing.backlog_open = True
        self._metrics.backlog(backlog.take(message), message.lost)
        wait_s = self._backlog_pace.wait_s(len(message.blocks))
        asyncio.get_running_loop().call_later(wait_s, outgoing.ack_backlog, message.number)


class _Session:
    """The samples of one stream."""

    def __init__(self, windows: Windows, window: NodeWindow, outgoing: Outgoing, clock: Clock) -> None:
        self._windows = windows
        self._window = window
        self._outgoing = outgoing
        self._clock = clock
        self._budget = float(BURST_BLOCKS_MAX)
        self._budget_time_s = clock.monotonic_s()
        self._asked_to_resync = False

    def dictionary(self, dictionary: pb.Dictionary) -> None:
        self._windows.define(self._window, *messages.dictionary_of(dictionary))

    def block(self, message: pb.Block) -> tuple[Outcome, int]:
        """Takes in a block; returns what became of it and how many blocks were lost with it."""
        self._spend()
        lost = self._window.blocks_lost
        outcome = self._window.apply(messages.block_of(message))
        if outcome is Outcome.NEED_KEYFRAME and not self._asked_to_resync:
            self._outgoing.resync(f"blocks before {message.sequence} are missing")
        self._asked_to_resync = outcome is Outcome.NEED_KEYFRAME
        self._outgoing.ack_block(message.sequence)
        return outcome, self._window.blocks_lost - lost

    def _spend(self) -> None:
        """One block of the rate that an agent may have."""
        now_s = self._clock.monotonic_s()
        earned = (now_s - self._budget_time_s) * BLOCKS_PER_S_MAX
        had, self._budget = self._budget, min(self._budget + earned, float(BURST_BLOCKS_MAX)) - 1
        self._budget_time_s = now_s
        if self._budget < -DEBT_BLOCKS_MAX:
            raise ResourceExhausted(
                f"more than {BLOCKS_PER_S_MAX:.0f} blocks a second and no regard for the throttle; sample less often",
                Reason.LIMIT_EXCEEDED,
            )
        if self._budget < 0 <= had:
            self._outgoing.throttle(1.0)
