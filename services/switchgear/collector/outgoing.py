"""What one stream has to tell its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from switchgear.collector.model import Event
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Blocks that are acked together: a message costs more than taking in a block, here and at the agent.
ACK_BLOCKS_MAX = 64
#: So long a block may wait for its ack. An agent keeps it on disk as long; its connection breaks with so many sent again.
ACK_S_MAX = 5.0


class Outgoing:
    """Acks are cumulative, so only the newest of each waits: it cannot grow.

    The first block of a connection is acked at once, since agents send what they kept only after it.
    """

    def __init__(self, now_s: float, ack_s_max: float = ACK_S_MAX) -> None:
        self.wake = asyncio.Event()
        #: Of the stream's hello, and when it last said something, on a monotonic clock.
        self.epoch = ""
        self.heard_s = now_s
        self._ack_s_max = ack_s_max
        self._acked_s = now_s - ack_s_max
        #: Blocks that came since the last ack, and the newest of them.
        self._unacked = 0
        self._block = 0
        self._backlog = 0
        #: A backlog came that is not acked yet.
        self.backlog_open = False
        self._events: dict[tuple[str, str], int] = {}
        self._others: dict[str, pb.CollectorMessage] = {}
        self.error: Exception | None = None

    def ack_block(self, sequence: int, now_s: float) -> None:
        self._block = max(self._block, sequence)
        self._unacked += 1
        if self._unacked >= ACK_BLOCKS_MAX or now_s - self._acked_s >= self._ack_s_max:
            self._acked_s = now_s
            self.wake.set()

    def flush(self, now_s: float) -> None:
        """Acks what has waited for long enough on a stream that has fallen silent."""
        if self._unacked and now_s - self._acked_s >= self._ack_s_max:
            self._acked_s = now_s
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

    def redirect(self, address: str) -> None:
        self._others["redirect"] = pb.CollectorMessage(redirect=pb.Redirect(address=address))
        self.wake.set()

    def resync(self, reason: str) -> None:
        self._others["resync"] = pb.CollectorMessage(resync=pb.Resync(reason=reason))
        self.wake.set()

    def throttle(self, interval_s_min: float) -> None:
        """Goes with the next ack: thousands of agents are not to be told at the same moment by a process that is late already."""
        throttle = pb.Throttle(interval_seconds_min=interval_s_min)
        self._others["throttle"] = pb.CollectorMessage(throttle=throttle)

    def close(self, error: Exception) -> None:
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
        if self._unacked:
            waiting.append(pb.CollectorMessage(block_ack=pb.BlockAck(sequence=self._block)))
        if self._backlog:
            waiting.append(pb.CollectorMessage(backlog_ack=pb.BacklogAck(number=self._backlog)))
        self._unacked = self._backlog = 0
        self._events.clear()
        self._others.clear()
        return waiting
