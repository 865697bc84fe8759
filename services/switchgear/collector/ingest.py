"""The collector's end of the telemetry streams: who may stream for a node, and for how long."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from switchgear.collector import messages
from switchgear.collector.blocks import protocol
from switchgear.collector.clocks import Clocks
from switchgear.collector.event_writer import EventWriter
from switchgear.collector.ingest_settings import IngestSettings
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.outgoing import Outgoing
from switchgear.collector.pressure import Pressure
from switchgear.collector.session import Session, Shared
from switchgear.collector.sharding import Sharding
from switchgear.collector.taps import Tap, Taps
from switchgear.collector.turns import Arrivals, Turns
from switchgear.collector.windows import Windows
from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, AlreadyExists, Reason
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: So long a stream's node is its own although nothing comes: many samples missed, the silence after which a node counts as gone.
SECOND_AGENT_S = 10.0
#: What this collector takes beyond the first release's messages.
FEATURES = frozenset(
    {
        pb.AgentHello.DELTAS,
        pb.AgentHello.BACKLOG,
        pb.AgentHello.REDIRECT,
        pb.AgentHello.BLOCKS,
        pb.AgentHello.LABEL_SETS,
    }
)
_LOOK_S = 1.0
#: Of the event loop's time, for backlogs. Live blocks of 4,000 nodes take two thirds of it, and streams that begin want their part.
_LATE_SHARE = 0.25

Context = grpc.aio.ServicerContext[Any, Any]


class Ingest:
    """All streams of this collector.

    connected, disconnected: called with `nodes/{node}` when its agent comes and goes; only the newest stream of a node counts. `connected`
    also gets the hello's boot_id and epoch.
    """

    def __init__(
        self,
        windows: Windows,
        writer: EventWriter,
        clock: Clock,
        metrics: CollectorMetrics,
        *,
        connected: Callable[[str, str, str], None],
        disconnected: Callable[[str], None],
        taps: Sequence[Tap] = (),
        settings: IngestSettings | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        settings = settings or IngestSettings()
        self._sharding = sharding or Sharding()
        self._arrivals = Arrivals()
        self._shared = Shared(
            windows,
            writer,
            clock,
            metrics,
            settings,
            Taps(taps),
            Clocks(settings.clock_offset_seconds_max, uuid.uuid4().hex),
            Pressure(settings.delay_seconds_max),
            Turns(clock, self._arrivals),
            Turns(clock, self._arrivals, _LATE_SHARE),
        )
        self._connected = connected
        self._disconnected = disconnected
        self._streams: dict[str, Outgoing] = {}

    async def stream(self, context: Context) -> AsyncIterator[pb.CollectorMessage]:
        """Serves one agent until it hangs up, breaks the protocol or is replaced by a newer stream of its node."""
        outgoing = Outgoing(self._shared.clock.monotonic_s(), self._shared.settings.ack_seconds_max)
        reader = asyncio.create_task(self._read(context, outgoing))
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

    def expect(self, streams: int) -> None:
        """So many agents streamed when this process was started, and are about to come back."""
        self._arrivals.expect(streams)

    async def run(self) -> None:
        """Looks after all streams until cancelled."""
        shared, clock, pressure = self._shared, self._shared.clock, self._shared.pressure
        due_s = clock.monotonic_s() + _LOOK_S
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = clock.monotonic_s()
            shared.metrics.loop_lag.observe(max(0.0, now_s - due_s))
            due_s = now_s + _LOOK_S
            asked = pressure.interval_s_min
            pressure.step(shared.metrics.delays.middle_s(), now_s)
            for outgoing in list(self._streams.values()):
                outgoing.flush(now_s)
                if pressure.interval_s_min != asked:
                    outgoing.throttle(pressure.interval_s_min)
            shared.metrics.looked(pressure.interval_s_min, shared.clocks.offsets_s(), shared.writer.waiting)

    async def _read(self, context: Context, outgoing: Outgoing) -> None:
        """Not by `async for`, and no wrapper around each message: at thousands of streams this is what costs."""
        shared, clock = self._shared, self._shared.clock
        try:
            first = await context.read()
            if first is grpc.aio.EOF:
                return
            hello = messages.hello_of(first)
            # One of a release that cannot be sent on is taken in wherever it comes.
            if pb.AgentHello.REDIRECT in hello.features and (address := self._sharding.elsewhere(hello.node)):
                outgoing.redirect(address)
                shared.metrics.redirects.inc()
                return
            session = self._begin(hello, outgoing)
            try:
                while (message := await context.read()) is not grpc.aio.EOF:
                    now_s = outgoing.heard_s = clock.monotonic_s()
                    await session.take(message, now_s)
            finally:
                session.close()
                if self._streams.get(hello.node) is outgoing:
                    del self._streams[hello.node]
                    shared.windows.disconnect(hello.node)
                    self._disconnected(hello.node)
        except DecodeError as error:
            raise protocol(f"a message cannot be read: {error}") from None

    def _begin(self, hello: pb.AgentHello, outgoing: Outgoing) -> Session:
        """Makes this the stream of its node."""
        shared, node = self._shared, hello.node
        outgoing.epoch, outgoing.heard_s = hello.epoch, shared.clock.monotonic_s()
        if (older := self._streams.get(node)) is not None:
            if older.epoch != hello.epoch and outgoing.heard_s - older.heard_s <= SECOND_AGENT_S:
                raise AlreadyExists(
                    f"another agent streams for {node}; stop it, or give this one an id of its own with --node",
                    Reason.ALREADY_EXISTS,
                    name=node,
                )
            older.close(Aborted(f"a newer stream of {node} has come; run one agent a node", Reason.STREAM_PROTOCOL))
        self._streams[node] = outgoing
        self._arrivals.came()
        self._connected(node, hello.boot_id, hello.epoch)
        features = FEATURES.intersection(hello.features)
        if hello.features:
            outgoing.welcome(sorted(features))
        if shared.pressure.interval_s_min:
            outgoing.throttle(shared.pressure.interval_s_min)
        window = shared.windows.connect(node, hello.epoch)
        window.gaps_lost = pb.AgentHello.BACKLOG not in features
        return Session(node, window, outgoing, shared)
