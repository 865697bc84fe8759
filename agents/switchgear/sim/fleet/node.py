"""One node of a simulated fleet: what an agent says to the collector, in the order in which it says it."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from itertools import islice

from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid
from switchgear.core.reconnect import BACKOFF_S_MAX, BACKOFF_S_MIN, REFUSED_BACKOFF_S, Homing
from switchgear.sim.fleet.collector import Collector, agent_message, dated, hello
from switchgear.sim.fleet.counts import Counts
from switchgear.sim.fleet.http2 import GrpcCall
from switchgear.sim.fleet.variant import KEPT_TICKS, Variant, packed_dictionary
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Of one node, until they are acked; its later ones are dropped, as a full spool does.
EVENTS_MAX = 10_000
#: As the agent: a connection that is so far behind goes on with the newest tick.
_WAITING_BYTES_MAX = 64 * 1024
#: Within the 16 KiB that an agent's message has.
_BACKLOG_BLOCKS_MAX = 32
_BACKLOG_PAUSE_S = 0.1
#: What a collector has to say welcome: gRPC's keep-alive, ping and timeout.
_WELCOME_S = 15.0
#: INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNIMPLEMENTED: saying the same again at once would not help.
_REFUSALS = {"3", "7", "8", "12"}
#: Numbers of the fields of `AgentMessage`.
_DICTIONARY, _BLOCK, _EVENT, _BACKLOG = 2, 3, 4, 6


@dataclass(frozen=True, slots=True)
class _Tick:
    number: int
    sequence: int
    time_unix_ns: int
    sent_s: float


@dataclass(frozen=True, slots=True)
class Shared:
    """What the nodes of a process have in common. run_id: of its start, names boots and epochs."""

    run_id: str
    series: int
    collector: Collector
    counts: Counts
    clock: Clock


class SimulatedNode:
    """All methods are for the event loop's thread. name: its id. phase_s: of its ticks within the interval."""

    def __init__(self, name: str, variant: Variant, shared: Shared, phase_s: float) -> None:
        self.name = name
        self.variant = variant
        self.phase_s = phase_s
        self._series = shared.series
        self._collector = shared.collector
        self._homing = Homing(shared.collector.address)
        #: Where the collector of this connection sends it.
        self._redirect = ""
        self._counts = shared.counts
        self._clock = shared.clock
        #: Names boot and epoch; no two nodes have the same boot.
        self._run_id = f"{name}.{shared.run_id}"
        self._sequence = 0
        self._every = 1
        self._skew_ns = 0
        self._call: GrpcCall | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._welcomed = False
        self._dictionary_told = False
        self._muted = False
        #: No agent is there: before the first `connect`, and while it is silent.
        self._silent = True
        #: The tick from which the blocks of this connection go on.
        self._began: int | None = None
        #: Of the newest block.
        self._ticked = 0
        self._under_way = deque[_Tick]()
        #: Made while nobody listened, oldest first.
        self._missed = deque[_Tick]()
        self._lost = 0
        self._live_acked = False
        self._backlog: tuple[int, list[_Tick], int] | None = None
        self._backlog_number = 0
        self._backlog_told = False
        self._events: dict[int, bytes] = {}
        self._event_sequence = self._event_sent = 0
        self._backoff_s = BACKOFF_S_MIN
        self._closed = False

    def start(self) -> None:
        """Begins to sample, and to keep a connection."""
        self._silent = False
        self._connect_now()

    def _connect_now(self) -> None:
        if not (self._closed or self._silent or self._muted or self._call or self._connecting):
            self._connecting = asyncio.ensure_future(self._connect())

    def close(self) -> None:
        """Ends it for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._call is not None:
            self._call.cancel()

    def tick(self) -> None:
        """Makes the block of the variant's present tick, and sends it when the collector listens."""
        number = self.variant.tick
        if self._silent or number - self._ticked < self._every:
            return
        self._ticked = number
        now_s = self._clock.monotonic_s()
        self._sequence += 1
        self._counts.blocks_made += 1
        tick = _Tick(number, self._sequence, self._clock.unix_ns() + self._skew_ns, now_s)
        call = self._call
        if call is None or not self._welcomed or self._muted or call.waiting_bytes > _WAITING_BYTES_MAX:
            self._began = None
            self._miss(tick)
            return
        if not self._dictionary_told:
            self._dictionary_told = True
            self._say(call, _DICTIONARY, packed_dictionary(self.name, self._series))
        if self._began is None:
            self._began = number
        block = dated(self.variant.block(self._began, self._every), tick.time_unix_ns, tick.sequence)
        self._under_way.append(tick)
        self._counts.blocks_sent += 1
        self._say(call, _BLOCK, block)
        self._send_backlog()

    def tell(self, event: pb.Event) -> None:
        """Numbers the event and keeps it until it is acked."""
        if len(self._events) >= EVENTS_MAX:
            return
        self._event_sequence += 1
        event.boot_id, event.sequence, event.time_unix_ns = (
            self._run_id,
            self._event_sequence,
            self._clock.unix_ns() + self._skew_ns,
        )
        self._events[self._event_sequence] = event.SerializeToString()
        self._counts.events_made += 1
        self._send_events()

    def silence(self, silent: bool) -> None:
        """Whether its agent is gone."""
        if not silent:
            self.start()
            return
        self._silent = True
        if self._call is not None:
            self._call.cancel()

    def mute(self, muted: bool) -> None:
        """Whether the network carries nothing between it and the collector."""
        self._muted = muted
        if self._call is None:
            self._connect_now()
        elif muted:
            self._call.stop_reading()
        else:
            self._call.go_on_reading()
            self._send_events()

    def skew(self, ahead_s: float) -> None:
        """How far its clock is ahead."""
        self._skew_ns = int(ahead_s * 1e9)

    @property
    def waiting(self) -> int:
        """Blocks that are neither acked nor lost."""
        return len(self._under_way) + len(self._missed)

    async def _connect(self) -> None:
        address = self._homing.address
        try:
            async with asyncio.timeout(_WELCOME_S):
                call = await self._collector.call(address, self._receive, self._ended)
        except (OSError, UnicodeError, Invalid) as error:  # a name that no host can have is a UnicodeError
            self._connecting = None
            self._homing.lost()
            why = getattr(error, "strerror", None) or str(error) or f"no answer within {_WELCOME_S:g} s"
            self._again(f"cannot connect to {address}: {why}")
            return
        self._connecting = None
        if call.ended:  # while it was made: `_ended` has seen to the next one
            return
        self._call = call
        if self._closed or self._silent or self._muted:
            call.cancel()
            return
        call.send(hello(self.name, self._run_id))
        self._send_events()
        asyncio.get_running_loop().call_later(_WELCOME_S, self._give_up, call)

    def _give_up(self, call: GrpcCall) -> None:
        """As the agent's keep-alive does with a connection that only one end has."""
        if call is self._call and not self._welcomed:
            call.cancel()

    def _ended(self, status: str, message: str) -> None:
        if self._closed:
            return
        if self._welcomed:
            self._counts.connected -= 1
            self._counts.reconnects += 1
        elif status in _REFUSALS:
            self._counts.refusals += 1
        if self._live_acked:
            self._backoff_s = BACKOFF_S_MIN
        self._call = None
        self._welcomed = self._dictionary_told = self._live_acked = self._backlog_told = False
        self._began = self._backlog = None
        self._event_sent = self._backlog_number = 0
        late, self._missed = [*self._under_way, *self._missed], deque()
        self._under_way.clear()
        for tick in sorted(late, key=lambda tick: tick.sequence):
            self._miss(tick)
        if self._redirect:
            self._homing.redirected(self._redirect)
            message, self._redirect = f"sent on to {self._redirect}", ""
        else:
            self._homing.lost()
        if status in _REFUSALS:
            self._backoff_s = REFUSED_BACKOFF_S
        self._again(message)

    def _again(self, why: str) -> None:
        if self._closed:
            return
        self._counts.last_error = f"{self.name}: {why}"
        # The same waits as the agent's (core.reconnect).
        asyncio.get_running_loop().call_later(self._backoff_s * random.uniform(0.5, 1.0), self._connect_now)
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)

    def _receive(self, data: bytes) -> None:
        message = pb.CollectorMessage.FromString(data)
        match message.WhichOneof("kind"):
            case "block_ack":
                self._acked(message.block_ack.sequence)
            case "event_ack":
                for sequence in [known for known in self._events if known <= message.event_ack.sequence]:
                    del self._events[sequence]
                    self._counts.events_acked += 1
                    self._counts.events_acked_to[self.name] = sequence
            case "welcome":
                self._welcomed = True
                self._counts.connected += 1
            case "redirect":
                self._redirect = message.redirect.address
            case "resync":
                self._counts.resyncs += 1
                self._dictionary_told = False
                self._began = None
            case "backlog_ack":
                self._backlog_acked(message.backlog_ack.number)
            case "throttle":
                self._counts.throttles += 1
                # Its ticks are others from now on: the next block is a keyframe.
                self._every = max(1, -int(-message.throttle.interval_seconds_min // self.variant.interval_s))
                self._began = None

    def _acked(self, sequence: int) -> None:
        now_s = self._clock.monotonic_s()
        while self._under_way and self._under_way[0].sequence <= sequence:
            self._counts.acked(now_s - self._under_way.popleft().sent_s)
        self._live_acked = True
        self._send_backlog()

    def _miss(self, tick: _Tick) -> None:
        self._missed.append(tick)
        if len(self._missed) > KEPT_TICKS:
            self._missed.popleft()
            self._lost += 1
            self._counts.blocks_lost += 1

    def _send_backlog(self) -> None:
        """What was missed, when there is any and none of it is under way."""
        if not (self._missed or self._lost) or self._backlog is not None:
            return
        if self._call is None or not self._live_acked or self._muted:
            return
        ticks = self._next_run()
        blocks = self.variant.backlog(ticks[0].number, ticks[-1].number) if ticks else ()
        gone = len(ticks) - len(blocks)
        self._counts.blocks_lost += gone
        self._lost += gone
        for _ in range(gone):
            self._missed.popleft()
        ticks = ticks[gone:]
        self._backlog_number += 1
        last = len(self._missed) == len(ticks)
        message = pb.Backlog(
            number=self._backlog_number,
            epoch=self._run_id,
            blocks=[
                pb.Block.FromString(dated(block, tick.time_unix_ns, tick.sequence))
                for block, tick in zip(blocks, ticks, strict=True)
            ],
            fresh_from=ticks[0].sequence if ticks else 0,
            lost=self._lost,
            last=last,
        )
        if ticks and not self._backlog_told:
            message.dictionary.MergeFromString(packed_dictionary(self.name, self._series))
        self._backlog_told = not last
        self._backlog = (self._backlog_number, ticks, self._lost)
        self._say(self._call, _BACKLOG, message.SerializeToString())

    def _next_run(self) -> list[_Tick]:
        """The oldest ticks that follow each other without a gap, as many as one message may have."""
        run = list[_Tick]()
        for tick in islice(self._missed, _BACKLOG_BLOCKS_MAX):
            if run and (tick.number, tick.sequence) != (run[-1].number + 1, run[-1].sequence + 1):
                break
            run.append(tick)
        return run

    def _backlog_acked(self, number: int) -> None:
        if self._backlog is None or self._backlog[0] != number:
            return
        _, ticks, lost = self._backlog
        self._backlog = None
        self._lost -= lost
        sent = {tick.sequence for tick in ticks}
        self._counts.blocks_late += len(ticks)
        self._missed = deque(tick for tick in self._missed if tick.sequence not in sent)
        if self._missed or self._lost:
            asyncio.get_running_loop().call_later(_BACKLOG_PAUSE_S, self._send_backlog)

    def _send_events(self) -> None:
        if self._call is None or self._muted:
            return
        for sequence, event in self._events.items():
            if sequence > self._event_sent:
                self._say(self._call, _EVENT, event)
                self._event_sent = sequence

    def _say(self, call: GrpcCall, field: int, payload: bytes) -> None:
        message = agent_message(field, payload)
        self._counts.bytes_sent += len(message)
        call.send(message)
