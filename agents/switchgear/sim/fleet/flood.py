"""Samples as fast as the collector acks them: how much it can take in."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from switchgear.core.clock import Clock
from switchgear.core.errors import Reason, Unavailable
from switchgear.core.process import allow_open_files
from switchgear.sim.fleet.collector import Collector, agent_message, dated, hello
from switchgear.sim.fleet.counts import Counts
from switchgear.sim.fleet.http2 import GrpcCall
from switchgear.sim.fleet.settings import OTHER_FILES, FleetSettings
from switchgear.sim.fleet.variant import KEYFRAME_EVERY, Variant, packed_dictionary
from switchgear.sim.workloads import seed_of
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Blocks of one node that are under way; a collector acks 64 at once, or what came within five seconds.
WINDOW_BLOCKS = 256
#: Blocks that go in one message, as those of an agent do that waited for its connection: it keeps so many.
TOGETHER_BLOCKS = 16
#: Distinct recordings, given to the nodes in turn.
VARIANTS = 4
#: Distinct ticks at most; they come again and again, each round beginning with a keyframe.
_TICKS_MAX = 4 * KEYFRAME_EVERY


class Flood:
    """Sends `settings.blocks` blocks from each node, with times that end at the flood's begin. Nobody waits for a throttle.

    Raises FailedPrecondition when the system allows too few sockets.
    """

    def __init__(self, settings: FleetSettings, clock: Clock) -> None:
        allow_open_files(settings.nodes + OTHER_FILES)
        self.counts = Counts()
        self._settings = settings
        self._clock = clock
        self._collector = Collector.at(settings.collector, settings.tls)
        self._recordings = [
            _recorded(settings, seed_of(settings.seed, "flood", number), self.counts) for number in range(VARIANTS)
        ]

    async def run(self) -> None:
        """Returns when the last block is acked. Raises Unavailable when a connection cannot be had, or breaks."""
        settings, run_id = self._settings, f"simulated.{uuid.uuid4().hex[:12]}"
        names = settings.names()[settings.first - 1 :][: settings.nodes]
        nodes = [
            _Flooding(name, self._recordings[place % len(self._recordings)], settings, self.counts, self._clock)
            for place, name in enumerate(names)
        ]
        try:
            for node in nodes:
                await node.open(self._collector, run_id)
            begin_s = self._clock.monotonic_s()
            begin_unix_ns = self._clock.unix_ns()
            for node in nodes:
                node.begin(begin_unix_ns)
            await asyncio.gather(*(node.done for node in nodes))
            self.counts.flood_s = self._clock.monotonic_s() - begin_s
        finally:
            for node in nodes:
                node.close()


class _Flooding:
    def __init__(
        self, name: str, recorded: Sequence[bytes], settings: FleetSettings, counts: Counts, clock: Clock
    ) -> None:
        self._name = name
        self._recorded = recorded
        self._blocks = settings.blocks
        self._interval_ns = int(settings.interval_s * 1e9)
        self._series = settings.series
        self._counts = counts
        self._clock = clock
        self._call: GrpcCall | None = None
        self._welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begin_unix_ns = 0
        self._sent = self._acked = 0
        self._sent_s: dict[int, float] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, collector: Collector, run_id: str) -> None:
        try:
            self._call = await collector.call(collector.address, self._receive, self._ended)
        except OSError as error:
            raise Unavailable(
                f"cannot connect to the collector: {error.strerror or error}", Reason.SERVER_UNREACHABLE
            ) from error
        self._call.send(hello(self._name, f"{self._name}.{run_id}"))
        await self._welcome
        self._call.send(agent_message(2, packed_dictionary(self._name, self._series)))

    def begin(self, begin_unix_ns: int) -> None:
        self._begin_unix_ns = begin_unix_ns
        self._pump()

    def close(self) -> None:
        self._welcome.cancel()
        self.done.cancel()
        if self._call is not None:
            self._call.cancel()

    def _pump(self) -> None:
        call, recorded = self._call, self._recorded
        if call is None:
            return
        while self._sent < self._blocks and self._sent - self._acked < WINDOW_BLOCKS and not call.congested:
            together = list[bytes]()
            while self._sent < self._blocks and len(together) < TOGETHER_BLOCKS:
                number = self._sent
                self._sent += 1
                time_unix_ns = self._begin_unix_ns - (self._blocks - number) * self._interval_ns
                # A field of `Blocks` looks as one of `AgentMessage` does.
                together.append(agent_message(1, dated(recorded[number % len(recorded)], time_unix_ns, self._sent)))
                self._sent_s[self._sent] = self._clock.monotonic_s()
            message = agent_message(7, b"".join(together))
            self._counts.blocks_sent += len(together)
            self._counts.blocks_made += len(together)
            self._counts.bytes_sent += len(message)
            call.send(message)

    def _receive(self, data: bytes) -> None:
        message = pb.CollectorMessage.FromString(data)
        match message.WhichOneof("kind"):
            case "block_ack":
                now_s = self._clock.monotonic_s()
                while self._acked < message.block_ack.sequence:
                    self._acked += 1
                    self._counts.acked(now_s - self._sent_s.pop(self._acked))
                if self._acked == self._blocks and not self.done.done():
                    self.done.set_result(None)
                self._pump()
            case "welcome":
                self._counts.connected += 1
                self._welcome.set_result(None)
            case "resync":
                self._counts.resyncs += 1
            case "throttle":
                self._counts.throttles += 1

    def _ended(self, status: str, message: str) -> None:
        told = f"{self._name}: the collector ended the stream: {message} (gRPC status {status or 'unknown'})"
        for waited in (self._welcome, self.done):
            if not waited.done():
                waited.set_exception(Unavailable(told, Reason.SERVER_UNREACHABLE))
                return


def _recorded(settings: FleetSettings, seed: int, counts: Counts) -> list[bytes]:
    """Blocks without time and number."""
    variant = Variant(seed, settings.series, settings.interval_s)
    blocks = list[bytes]()
    rounds = -(-settings.blocks // KEYFRAME_EVERY)
    for tick in range(KEYFRAME_EVERY, KEYFRAME_EVERY + min(rounds * KEYFRAME_EVERY, _TICKS_MAX)):
        variant.advance(tick)
        blocks.append(variant.block(KEYFRAME_EVERY))
    counts.samples += variant.samples
    counts.changed += variant.changed
    return blocks
