"""Values as small integers: what goes into a `switchgear.v1alpha.Block`, with one look at each value and nothing lost.

Measured values are decimal fractions or multiples of a page, so a float64 is mostly n / d with a small set of divisors d, and n moves little
from tick to tick. Each series learns its divisor and keeps it; a value that does not come out bit for bit makes it learn another, and
one that no divisor fits goes as it is. (Zero is zero: its sign is not kept.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from switchgear.agent.readings import Kind, Reading
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: By class, as the contract lists them; class 0 is the value itself.
DIVISORS = (0.0, 1 / 4096, 1 / 1024, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e9)
#: Flag of a class: the differences themselves change little, as those of a counter under steady load.
STEADY = 0x10
#: Beyond it a float64 has no place for every integer.
_NUMBER_MAX = 2.0**53


class Encoder:
    """The chain of one epoch: each block builds on those since the last keyframe."""

    def __init__(self) -> None:
        self._classes = bytearray()
        self._divisors: list[float] = []
        self._numbers: list[int] = []
        self._steps: list[int] = []

    def encode(self, items: Iterable[tuple[int, Reading]], count: int, *, keyframe: bool) -> pb.Block:
        """items: (id, reading) in id order, in a keyframe all `count` series; otherwise a new id comes with the first block that has it."""
        divisors = self._divisors
        new = count - len(divisors)
        divisors += [0.0] * new
        self._classes += bytes(new)
        if keyframe:
            self._numbers, self._steps = [0] * count, [0] * count
        else:
            self._numbers += [0] * new
            self._steps += [0] * new
        classes, numbers, steps = self._classes, self._numbers, self._steps
        changed = bytearray((count + 7) // 8)
        deltas: list[int] = []
        plain: list[float] = []
        reclassed: list[int] = []
        unknown: list[pb.UnknownSeries] = []
        for series_id, reading in items:
            value = reading[1]
            if value is None:
                unknown.append(pb.UnknownSeries(id=series_id, reason=reading[2]))
                continue
            changed[series_id >> 3] |= 1 << (series_id & 7)
            divisor = divisors[series_id]
            scaled = value * divisor
            if divisor and -_NUMBER_MAX < scaled < _NUMBER_MAX and (number := round(scaled)) / divisor == value:
                delta = number - numbers[series_id]
                numbers[series_id] = number
                if classes[series_id] & STEADY and not keyframe:
                    delta, steps[series_id] = delta - steps[series_id], delta
                deltas.append(delta)
                continue
            # A series that found no divisor tries again at keyframes alone: measured ratios would try all of them each time.
            if divisor or keyframe or series_id >= count - new:
                number = self._learn(series_id, value, reading.key.kind)
                reclassed.append(series_id << 8 | classes[series_id])
            if divisors[series_id]:
                numbers[series_id], steps[series_id] = number, 0
                deltas.append(number)
            else:
                plain.append(value)
        return pb.Block(
            keyframe=keyframe,
            values_f64=struct.pack(f"<{len(plain)}d", *plain),
            unknown=unknown,
            changed=bytes(changed).rstrip(b"\0"),
            deltas=deltas,
            classes=bytes(classes) if keyframe else b"",
            reclassed=() if keyframe else reclassed,
        )

    def _learn(self, series_id: int, value: float, kind: Kind) -> int:
        """Gives the series the first class from its own on that fits; returns the value's integer in it."""
        at_least = max(1, self._classes[series_id] & (STEADY - 1))
        for number, divisor in enumerate(DIVISORS[at_least:], at_least):
            scaled = value * divisor
            if -_NUMBER_MAX < scaled < _NUMBER_MAX and (integer := round(scaled)) / divisor == value:
                self._divisors[series_id] = divisor
                self._classes[series_id] = number | (STEADY if kind is Kind.COUNTER else 0)
                return integer
        self._divisors[series_id] = 0.0
        self._classes[series_id] = 0
        return 0


def plain_keyframe(readings: Sequence[Reading], time_unix_ns: int, sequence: int) -> pb.Block:
    """All values as they are, for a collector that knows no deltas."""
    known = [(series_id, reading.value) for series_id, reading in enumerate(readings) if reading.value is not None]
    whole = len(known) == len(readings)
    return pb.Block(
        time_unix_ns=time_unix_ns,
        sequence=sequence,
        keyframe=True,
        series_ids=b"" if whole else struct.pack(f"<{len(known)}I", *(series_id for series_id, _ in known)),
        values_f64=struct.pack(f"<{len(known)}d", *(value for _, value in known)),
        unknown=[
            pb.UnknownSeries(id=series_id, reason=reading.reason)
            for series_id, reading in enumerate(readings)
            if reading.value is None
        ],
    )
