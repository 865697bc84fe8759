"""What a simulated fleet has done so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

#: Ack latencies are counted by the millisecond, up to this many.
_LATENCY_MS_MAX = 20_000


@dataclass(slots=True)
class Counts:
    """Of one process of a fleet, or of all (`merged`).

    connected: nodes now. reconnects: connections that broke after they were welcomed. refusals: those that the collector did not want.
    blocks_made: ticks of all nodes, whether a collector was there or not. blocks_late: that were acked as backlog. blocks_lost: given up.
    blocks_waiting: neither acked nor lost. ticks_late: times at which a process was more than an interval behind.
    samples, changed: computed, and those of them that differ from the tick before. cpu_s: of the process.
    warm: whether latencies are counted. flood_s: from the first block to the last ack, in a flood.
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
    samples: int = 0
    changed: int = 0
    cpu_s: float = 0.0
    flood_s: float = 0.0
    warm: bool = True
    last_error: str = ""
    #: By node, the newest event that is acked, and with it all before.
    events_acked_to: dict[str, int] = field(default_factory=dict)
    latency_ms: list[int] = field(default_factory=lambda: [0] * (_LATENCY_MS_MAX + 1))

    def acked(self, latency_s: float) -> None:
        """One more block, so long after it was sent."""
        self.blocks_acked += 1
        if self.warm:
            self.latency_ms[min(_LATENCY_MS_MAX, int(latency_s * 1000))] += 1

    def latency_s(self, share: float) -> float | None:
        """Latency from a block to its ack that `share` (0 to 1) of the blocks stayed below, to the millisecond; None without acks."""
        wanted, seen = share * sum(self.latency_ms), 0
        for milliseconds, count in enumerate(self.latency_ms):
            seen += count
            if seen and seen >= wanted:
                return (milliseconds + 1) / 1000
        return None


def merged(parts: Sequence[Counts]) -> Counts:
    """Of all processes together; the flood's time is the longest."""
    total = Counts()
    for item in fields(Counts):
        values = [getattr(part, item.name) for part in parts]
        if item.name == "latency_ms":
            setattr(total, item.name, [sum(column) for column in zip(*values, strict=True)])
        elif item.name == "events_acked_to":
            total.events_acked_to = {node: number for part in values for node, number in part.items()}
        elif item.name == "last_error":
            setattr(total, item.name, next(filter(None, values), ""))
        else:
            setattr(total, item.name, max(values) if item.name in ("flood_s", "warm") else sum(values))
    return total


def line(counts: Counts, before: Counts, nodes: int, seconds: float) -> str:
    """What a person reads while it runs; rates are since `before`, so many seconds ago."""
    latency_s = counts.latency_s(0.99)
    text = (
        f"{counts.connected} of {nodes} connected, {(counts.blocks_sent - before.blocks_sent) / seconds:.0f} blocks/s, ack p99 "
        f"{'-' if latency_s is None else f'{1000 * latency_s:.0f} ms'}, waiting {counts.blocks_waiting}, lost {counts.blocks_lost}, "
        f"events {counts.events_acked} of {counts.events_made}, CPU {counts.cpu_s - before.cpu_s:.2f} s"
    )
    return f"{text}; {counts.last_error}" if counts.last_error != before.last_error else text


def summary(counts: Counts) -> dict[str, object]:
    """All of it for programs; None where nothing was measured."""
    plain = {
        item.name: getattr(counts, item.name) for item in fields(Counts) if item.name not in ("latency_ms", "warm")
    }
    return plain | {
        "changed_share": counts.changed / counts.samples if counts.samples else None,
        "ack_p50_s": counts.latency_s(0.5),
        "ack_p99_s": counts.latency_s(0.99),
        "cpu_us_a_block": 1e6 * counts.cpu_s / counts.blocks_sent if counts.blocks_sent else None,
    }
