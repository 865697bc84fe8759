"""What the simulated GPUs are doing: rates of use over time, with their integrals in closed form.

A workload is a cycle of segments with constant rates, so counters are exact integrals of what the gauges show, at any time, in any order
and without a state.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum
from itertools import accumulate

from switchgear.core.errors import Invalid, Reason


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of the possible, 0 to 1.

    busy: time in which any kernel runs. sm, tensor, dram: time in which those units work. link, pcie_in, pcie_out: of the links' rate.
    power: of the span between idle and the limit. capped: time at the power limit.
    """

    busy: float = 0.0
    sm: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0
    link: float = 0.0
    pcie_in: float = 0.0
    pcie_out: float = 0.0
    power: float = 0.0
    capped: float = 0.0


class Rate(IntEnum):
    """Position of each of the `Rates` in `Cycle.integral`."""

    BUSY = 0
    SM = 1
    TENSOR = 2
    DRAM = 3
    LINK = 4
    PCIE_IN = 5
    PCIE_OUT = 6
    POWER = 7
    CAPPED = 8


NONE = Rates()
Segment = tuple[float, Rates]

_COMPUTE = Rates(1.0, 0.91, 0.58, 0.44, 0.06, 0.01, 0.004, 0.93, 0.35)
_COMMUNICATE = Rates(1.0, 0.17, 0.0, 0.24, 0.71, 0.02, 0.02, 0.40)
_LOAD_DATA = Rates(0.08, 0.03, 0.0, 0.02, 0.0, 0.32, 0.01, 0.08)
_CHECKPOINT = Rates(0.15, 0.04, 0.0, 0.08, 0.01, 0.01, 0.41, 0.12)
_PREFILL = Rates(1.0, 0.83, 0.52, 0.35, 0.18, 0.02, 0.01, 0.85, 0.1)
_DECODE = Rates(1.0, 0.38, 0.07, 0.78, 0.12, 0.01, 0.01, 0.47)
_WAIT = Rates(0.02, 0.01, 0.0, 0.01, 0.0, 0.001, 0.001, 0.03)


class Cycle:
    """Segments that repeat for ever, before time 0 as after it."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._rates = [astuple(rates) for _, rates in segments]
        self._starts = [0.0, *accumulate(length for length, _ in segments)]
        self.period_s = self._starts.pop()
        self._before: list[tuple[float, ...]] = []
        total = astuple(NONE)
        for (length, _), rates in zip(segments, self._rates, strict=True):
            self._before.append(total)
            total = tuple(sum_ + length * rate for sum_, rate in zip(total, rates, strict=True))
        self._total = total

    def integral(self, time_s: float) -> tuple[float, ...]:
        """Of each of the `Rates`, from time 0 on, in seconds; negative before it. O(log segments)."""
        cycles, within_s = divmod(time_s, self.period_s)
        at = bisect_right(self._starts, within_s) - 1
        since_s = within_s - self._starts[at]
        return tuple(
            cycles * total + before + since_s * rate
            for total, before, rate in zip(self._total, self._before[at], self._rates[at], strict=True)
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """together: all GPUs do the same at the same time, as ranks of one training job do."""

    cycle: Cycle
    together: bool
    memory_share: float


def _training(seed: int) -> Iterator[Segment]:
    """Steps of about 1.6 s for five minutes, then a checkpoint."""
    for step in range(180):
        yield 1.06 + 0.05 * noise(seed, step, 1), _COMPUTE
        yield 0.43 + 0.04 * noise(seed, step, 2), _COMMUNICATE
        yield 0.10 + 0.03 * noise(seed, step, 3), _LOAD_DATA
    yield 8.0, _CHECKPOINT


def _inference(seed: int) -> Iterator[Segment]:
    """Bursts of requests with pauses between them."""
    for burst in range(60):
        for answer in range(4):
            yield 0.35 + 0.15 * noise(seed, burst, answer), _PREFILL
            yield 1.3 + 0.7 * noise(seed, burst, answer + 10), _DECODE
        yield 2.0 + 1.9 * noise(seed, burst, 20), _WAIT


WORKLOADS = ("training", "inference", "idle")
DEFAULT = "training"


def workload(name: str, seed: int) -> Workload:
    """Raises Invalid when nothing is called `name`."""
    match name:
        case "training":
            return Workload(Cycle(tuple(_training(seed))), together=True, memory_share=0.86)
        case "inference":
            return Workload(Cycle(tuple(_inference(seed))), together=False, memory_share=0.9)
        case "idle":
            return Workload(Cycle(((60.0, NONE),)), together=True, memory_share=0.0)
    known = ", ".join(WORKLOADS)
    raise Invalid(f"no simulated workload is called {name}; use one of {known}", Reason.BAD_FIELD, field="workload")


_MASK = 2**64 - 1


def noise(seed: int, *place: int) -> float:
    """A number in -1 to 1 that looks random and follows from the arguments alone (the finaliser of splitmix64)."""
    mixed = seed
    for number in place:
        mixed = (mixed + number + 1) * 0x9E3779B97F4A7C15 & _MASK
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        mixed ^= mixed >> 27
    return mixed / 2**63 - 1.0


def seed_of(*parts: object) -> int:
    """A seed for `noise` from names and numbers; the same in every process."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
