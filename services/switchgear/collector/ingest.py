"""The collector's end of the telemetry streams: what agents say is checked, taken in and acked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio

from switchgear.collector.event_writer import EventWriter
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.model import Event
from switchgear.collector.windows import REASON_CHARS_MAX, Block, NodeWindow, Outcome, SeriesKey, Windows
from switchgear.core import identity, names
from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, AlreadyExists, Invalid, Reason, ResourceExhausted, SwitchgearError
from switchgear.v1alpha import telemetry_service_pb2 as pb

TEXT_BYTES_MAX = 2048
LABELS_MAX = 32
PCI_CHARS_MAX = 16
DETAIL_MAX = 16
NAME_CHARS_MAX = 256
#: Sustained rate of a stream; an agent that samples faster is told to slow down.
BLOCKS_PER_S_MAX = 20.0
#: What an agent may send at once after an outage: its whole queue, twice.
BURST_BLOCKS_MAX = 480
#: So long a stream's node is its own although nothing comes: many samples missed, the silence after which a node counts as gone.
SECOND_AGENT_S = 10.0
#: An agent that ignores the throttle for so many blocks more is cut off.
DEBT_BLOCKS_MAX = 2000


class Outgoing:
    """What one stream has to tell its agent. Acks are cumulative, so only the newest of each waits: it cannot grow."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        #: Of the stream's hello, and when it last said something.
        self.epoch = ""
        self.heard_s = 0.0
        self._block = 0
        self._events: dict[tuple[str, str], int] = {}
        self._others: dict[str, pb.CollectorMessage] = {}
        self.error: SwitchgearError | None = None

    def ack_block(self, sequence: int) -> None:
        self._block = max(self._block, sequence)
        self.wake.set()

    def ack_event(self, event: Event) -> None:
        self._events[event.boot_id, event.source] = event.sequence
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
        messages = [
            pb.CollectorMessage(event_ack=pb.EventAck(boot_id=boot_id, source=source, sequence=sequence))
            for (boot_id, source), sequence in self._events.items()
        ]
        messages += self._others.values()
        if self._block:
            messages.append(pb.CollectorMessage(block_ack=pb.BlockAck(sequence=self._block)))
        self._block = 0
        self._events.clear()
        self._others.clear()
        return messages


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
            hello = _checked_hello(first)
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
            session = _Session(self._windows, self._windows.connect(node, hello.epoch), outgoing, self._clock)
            async for message in requests:
                outgoing.heard_s = self._clock.monotonic_s()
                match message.WhichOneof("kind"):
                    case "block":
                        self._metrics.block(session.block(message.block))
                    case "event":
                        await self._writer.put(_checked_event(node, message.event), outgoing.ack_event)
                    case "dictionary":
                        session.dictionary(message.dictionary)
                    case "associations":
                        pass  # kept by nobody yet
                    case _:
                        raise _protocol("the first message, and no other, must be a hello")
        finally:
            if self._streams.get(node) is outgoing:
                del self._streams[node]
                self._windows.disconnect(node)
                self._disconnected(node)


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
        if not dictionary.series:
            return
        first_id = dictionary.series[0].id
        for offset, series in enumerate(dictionary.series):
            if series.id != first_id + offset:
                raise _protocol("series ids of a dictionary must count up by one")
        self._windows.define(self._window, first_id, [_checked_series(series) for series in dictionary.series])

    def block(self, message: pb.Block) -> tuple[Outcome, int]:
        """Takes in a block; returns what became of it and how many blocks were lost with it."""
        self._spend()
        lost = self._window.blocks_lost
        outcome = self._window.apply(
            Block(
                time_unix_ns=message.time_unix_ns,
                sequence=message.sequence,
                keyframe=message.keyframe,
                series_ids=message.series_ids,
                values_f64=message.values_f64,
                unknown={item.id: item.reason[:REASON_CHARS_MAX] or "no reason given" for item in message.unknown},
            )
        )
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


def _checked_hello(message: pb.AgentMessage) -> pb.AgentHello:
    if not message.HasField("hello"):
        raise _protocol("the first message must be a hello")
    hello = message.hello
    names.parse(hello.node, "nodes/*")
    identity.require_node(hello.node)
    if not 1 <= len(hello.epoch) <= NAME_CHARS_MAX:
        raise _protocol(f"the hello's epoch must have 1 to {NAME_CHARS_MAX} characters")
    return hello


def _checked_series(series: pb.Series) -> SeriesKey:
    texts = [series.metric, series.unit, *series.labels, *series.labels.values()]
    if not series.metric or len(series.labels) > LABELS_MAX or any(len(text) > NAME_CHARS_MAX for text in texts):
        raise _protocol(
            f"series {series.id} needs a metric, at most {LABELS_MAX} labels and texts of at most {NAME_CHARS_MAX} characters"
        )
    return SeriesKey(series.metric, series.unit, tuple(sorted(series.labels.items())))


def _checked_event(node: str, event: pb.Event) -> Event:
    if not (1 <= len(event.boot_id) <= 128 and 1 <= len(event.source) <= 64 and 1 <= len(event.kind) <= 64):
        raise _protocol("an event needs a boot_id (128 characters at most), a source and a kind (64 at most)")
    if not 1 <= event.sequence < 2**63 or (event.HasField("gpu") and event.gpu < 0):
        raise _protocol("an event's sequence counts from 1, and its gpu from 0")
    texts = [*event.detail, *event.detail.values()]
    if (
        len(event.pci) > PCI_CHARS_MAX
        or len(texts) > 2 * DETAIL_MAX
        or any(len(text) > NAME_CHARS_MAX for text in texts)
    ):
        raise _protocol(
            f"an event's pci has at most {PCI_CHARS_MAX} characters, its detail {DETAIL_MAX} entries of {NAME_CHARS_MAX}"
        )
    return Event(
        node=node,
        boot_id=_text(event.boot_id),
        source=_text(event.source),
        sequence=event.sequence,
        time_unix_ns=event.time_unix_ns,
        kind=_text(event.kind),
        gpu=event.gpu if event.HasField("gpu") else None,
        code=event.code if event.HasField("code") else None,
        text=_text(event.text.encode()[:TEXT_BYTES_MAX].decode(errors="ignore")),
        simulated=event.simulated,
        pci=_text(event.pci),
        detail={_text(name): _text(value) for name, value in event.detail.items()},
    )


def _text(value: str) -> str:
    """PostgreSQL stores every character but this one."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _protocol(message: str) -> Invalid:
    return Invalid(message, Reason.STREAM_PROTOCOL)
