"""What a simulated fleet has done so far."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Ack latencies are counted by the millisecond, up to this many.
_LATENCY_MS_MAX = 20_000


@dataclass(slots=True)
class Counts:
    """Of one process of a fleet. blocks_made: ticks of all nodes, whether a collector was there or not.

    blocks_late: that came later, as backlog. blocks_lost: given up. reconnects: connections that broke after they were welcomed.
    """

    connected: int = 0
    reconnects: int = 0
    refusals: int = 0
    blocks_made: int = 0
    blocks_sent: int = 0
    blocks_acked: int = 0
    blocks_late: int = 0
    blocks_lost: int = 0
    blocks_waiting: int = 0
    resyncs: int = 0
    throttles: int = 0
    events_made: int = 0
    events_acked: int = 0
    bytes_sent: int = 0
    ticks_late: int = 0
    last_error: str = ""
    latency_ms: list[int] = field(default_factory=lambda: [0] * (_LATENCY_MS_MAX + 1))

    def acked(self, latency_s: float) -> None:
        self.blocks_acked += 1
        self.latency_ms[min(_LATENCY_MS_MAX, int(latency_s * 1000))] += 1

    def latency_s(self, share: float) -> float | None:
        """Latency from a block to its ack that `share` (0 to 1) of the blocks stayed below, to the millisecond; None without acks."""
        wanted, seen = share * sum(self.latency_ms), 0
        for milliseconds, count in enumerate(self.latency_ms):
            seen += count
            if seen and seen >= wanted:
                return (milliseconds + 1) / 1000
        return None
