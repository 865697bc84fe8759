"""Recordings of simulated GPUs for benchmarks: the same seed gives the same values on every machine.

    python -m switchgear.sim.record --profile H100 --gpus 8 --seconds 600 --seed 7 --out recording.jsonl

The first line of the file has the series, each further one a tick: `[time in Unix nanoseconds, [a value for each series]]`. How many of
the values change from one tick to the next is printed, since everything that a benchmark of a wire or a store says depends on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from switchgear.core.errors import Invalid, Reason
from switchgear.sim import driver, profiles, workloads
from switchgear.sim.faults import History, parse_script
from switchgear.sim.gpus import simulated_device
from switchgear.sim.signals import GpuSignals
from switchgear.sim.workloads import noise, seed_of

#: What the agent reads seldom, it reads with this period; see `agent.hardware`.
SLOW_PERIOD_S = 15.0
#: How far ticks stray from the second, as those of a process that is not alone.
_JITTER_S = 0.002
#: The recorded time begins so long after the start of the hardware: counters are not at 0, temperatures have settled.
_BEFORE_S = 36_000.0
_NODE = "recorded"
_START_UNIX_NS = 1_790_000_000_000_000_000
#: Series x ticks that one recording may have; it is made in memory of one tick at a time, but a file of it is not small.
_VALUES_MAX = 50_000_000


@dataclass(frozen=True, slots=True)
class RecordedSeries:
    """labels: those that the agent's GPU sources give."""

    metric: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """Iterating gives each tick's time in Unix nanoseconds and a value for each of `series`; any number of times."""

    series: Sequence[RecordedSeries]
    interval_s: float
    ticks: int
    _seed: int = field(repr=False)
    _gpus: Sequence[GpuSignals] = field(repr=False)

    def __iter__(self) -> Iterator[tuple[int, list[float]]]:
        slow = [list[float]() for _ in self._gpus]
        due_s = [_BEFORE_S + SLOW_PERIOD_S * (0.5 + 0.5 * noise(self._seed, 1, gpu)) for gpu in range(len(self._gpus))]
        for tick in range(self.ticks):
            time_s = _BEFORE_S + tick * self.interval_s + _JITTER_S * noise(self._seed, 2, tick)
            values = list[float]()
            for index, gpu in enumerate(self._gpus):
                if not slow[index] or time_s >= due_s[index]:
                    slow[index] = _values(gpu, time_s, slow=True)
                    if time_s >= due_s[index]:
                        due_s[index] += SLOW_PERIOD_S
                values += _values(gpu, time_s, slow=False)
                values += slow[index]
            yield _START_UNIX_NS + int(time_s * 1e9), values

    def changed_share(self) -> float:
        """Part of the values that differ from those of the tick before, of all ticks but the first; 0 to 1."""
        changed = total = 0
        before: list[float] = []
        for _, values in self:
            if before:
                changed += sum(now != then for now, then in zip(values, before, strict=True))
                total += len(values)
            before = values
        return changed / total if total else 0.0


def recording(
    seed: int,
    *,
    profile: str = profiles.DEFAULT,
    gpus: int = 8,
    seconds: int = 600,
    interval_s: float = 1.0,
    work: str = workloads.DEFAULT,
    script: str = "",
) -> Recording:
    """What the GPU sources of one agent would have reported.

    script: faults, with times from the begin of the recording (`switchgear.sim.faults`); a GPU may get slow or hot in a recording, but
    not lost: then it would have no values. Raises Invalid for what is out of its bounds.
    """
    if not 1 <= gpus <= profiles.GPUS_MAX:
        raise Invalid(f"{gpus} GPUs cannot be recorded; use 1 to {profiles.GPUS_MAX}", Reason.BAD_FIELD, field="gpus")
    if not (0.01 <= interval_s <= 60 and interval_s <= seconds):
        raise Invalid("the interval must be 0.01 to 60 s, and not above the length", Reason.BAD_FIELD, field="interval")
    facts = profiles.profile(profile)
    does = workloads.workload(work, seed)
    histories = [History() for _ in range(gpus)]
    for item in parse_script(script):
        if item.fault.target >= gpus or not item.fault.kind.has_values:
            raise Invalid(f"`{item.fault.text}` cannot be recorded", Reason.BAD_FIELD, field="script")
        histories[item.fault.target].add(item.later(_BEFORE_S))
    signals = [GpuSignals(facts, does, seed_of(seed, _NODE, index), histories[index]) for index in range(gpus)]
    series = tuple(
        RecordedSeries(metric, (*simulated_device(_NODE, index, facts).labels(_NODE), *labels))
        for index, gpu in enumerate(signals)
        for slow in (False, True)
        for metric, labels, _ in driver.read(gpu, _BEFORE_S, slow=slow)
    )
    ticks = int(seconds / interval_s)
    if ticks * len(series) > _VALUES_MAX:
        raise Invalid("the recording would be too large; make it shorter", Reason.BAD_FIELD, field="seconds")
    return Recording(series, interval_s, ticks, seed, signals)


def _values(gpu: GpuSignals, time_s: float, *, slow: bool) -> list[float]:
    return [value for _, _, value in driver.read(gpu, time_s, slow=slow) if not isinstance(value, str)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m switchgear.sim.record", description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", choices=tuple(profiles.PROFILES), default=profiles.DEFAULT)
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default=workloads.DEFAULT)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where to write it; only the summary is printed without")
    args = parser.parse_args(arguments)
    try:
        made = recording(
            args.seed,
            profile=args.profile,
            gpus=args.gpus,
            seconds=args.seconds,
            interval_s=args.interval,
            work=args.workload,
        )
    except Invalid as error:
        parser.error(str(error))
    if args.out:
        with args.out.open("w") as file:
            head = {"series": [[series.metric, dict(series.labels)] for series in made.series]}
            file.write(json.dumps(head) + "\n")
            for time_unix_ns, values in made:
                file.write(json.dumps([time_unix_ns, values]) + "\n")
    summary = {
        "profile": args.profile,
        "workload": args.workload,
        "gpus": args.gpus,
        "seed": args.seed,
        "series": len(made.series),
        "ticks": made.ticks,
        "interval_s": made.interval_s,
        "samples": len(made.series) * made.ticks,
        "changed_share": round(made.changed_share(), 4),
    }
    print(json.dumps(summary))  # noqa: T201 - a command's output
    return 0


if __name__ == "__main__":
    sys.exit(main())
