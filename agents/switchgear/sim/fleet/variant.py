"""What several simulated nodes have in common: the values of their GPUs, and their blocks but for time and number.

A tick is computed once and encoded once for all nodes whose keyframes are due together, with the agent's own encoder, so that thousands of nodes
cost little more than what is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from switchgear.agent.deltas import Encoder
from switchgear.agent.messages import dictionary_message, packed
from switchgear.agent.readings import Reading, SeriesKey, series
from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.core.errors import Invalid, Reason
from switchgear.sim import driver, profiles, workloads
from switchgear.sim.faults import History
from switchgear.sim.gpus import simulated_device
from switchgear.sim.record import SLOW_PERIOD_S
from switchgear.sim.signals import GpuSignals
from switchgear.sim.workloads import noise, seed_of

KEYFRAME_EVERY = 60
PROFILE = "H100"
#: GPUs of a node, and of one that has more series than those have.
GPUS, GPUS_MANY = 8, profiles.GPUS_MAX
#: Ticks that are kept for nodes that were not connected; older ones they have given up.
KEPT_TICKS = 120
#: Simulated time begins so long after the hardware's start: counters are not at 0, temperatures have settled.
BEFORE_S = 36_000.0
#: Stands where a node's name and the ids of its GPUs do, as long as these.
_NODE = "\x01" * 8


class Variant:
    """The GPUs of some nodes from tick to tick. `advance` comes first; times are ticks, from 1 on.

    series: of each node, 8 to about 1,900, those that change with each tick first. histories: faults of each GPU, with times in seconds after tick 0.
    """

    def __init__(self, seed: int, count: int, interval_s: float, histories: Sequence[History] = ()) -> None:
        self._seed = seed
        self.interval_s = interval_s
        self._gpus = gpus_for(count)
        profile = profiles.profile(PROFILE)
        does = workloads.workload(workloads.DEFAULT, seed)
        histories = histories or [History() for _ in range(self._gpus)]
        self._signals = [
            GpuSignals(profile, does, seed_of(seed, "fleet", gpu), histories[gpu]) for gpu in range(self._gpus)
        ]
        self._keys = keys_for(count)
        # Of each GPU the first so many series.
        self._shares = [count // self._gpus + (gpu < count % self._gpus) for gpu in range(self._gpus)]
        self._slow = [list[float | str]() for _ in self._signals]
        self.tick = 0
        self._readings: list[Reading] = []
        self._changed: list[tuple[int, Reading]] = []
        self._kept: deque[tuple[int, list[Reading]]] = deque(maxlen=KEPT_TICKS)
        self._chains: dict[tuple[int, int], _Chain] = {}
        #: Of the samples, those that differ from the tick before.
        self.changed = self.samples = 0
        self.backlog = lru_cache(64)(self._backlog)

    @property
    def readings(self) -> Sequence[Reading]:
        """Of the present tick, in the order of the ids."""
        return self._readings

    def advance(self, tick: int) -> None:
        """Computes the values of the next tick."""
        self.tick = tick
        before = self._readings
        self._readings = [
            Reading(key, None, value) if isinstance(value, str) else Reading(key, value)
            for key, value in zip(self._keys, self._values(tick * self.interval_s), strict=True)
        ]
        self._changed = list(_changes(self._readings, before))
        self.changed += len(self._changed)
        self.samples += len(before)
        self._kept.append((tick, self._readings))

    def block(self, began: int, every: int = 1) -> bytes:
        """The present tick as a serialized `Block` without time and sequence, for nodes that send each `every`th tick since `began`.

        They must have had all of these; the first is a keyframe, and so is each KEYFRAME_EVERYth.
        """
        period = every * KEYFRAME_EVERY
        chain = self._chains.get((began % period, every))
        if chain is None:
            chain = self._chains[began % period, every] = _Chain()
        if chain.tick != self.tick:
            keyframe = (self.tick - began) % period == 0
            items: Iterable[tuple[int, Reading]] = self._changed
            if keyframe:
                items = enumerate(self._readings)
            elif every > 1:
                items = _changes(self._readings, chain.readings)
            chain.body = chain.encoder.encode(items, len(self._keys), keyframe=keyframe).SerializeToString()
            chain.tick, chain.readings = self.tick, self._readings
        return chain.body

    def _backlog(self, first: int, last: int) -> tuple[bytes, ...]:
        """Ticks of the past as blocks without time and sequence, the first of them a keyframe; those that are kept no more are left out."""
        encoder, before = Encoder(), list[Reading]()
        blocks = list[bytes]()
        for tick, readings in self._kept:
            if first <= tick <= last:
                items = _changes(readings, before) if before else enumerate(readings)
                blocks.append(encoder.encode(items, len(readings), keyframe=not before).SerializeToString())
                before = readings
        return tuple(blocks)

    def _values(self, at_s: float) -> list[float | str]:
        values = list[float | str]()
        for gpu, signals in enumerate(self._signals):
            time_s = BEFORE_S + at_s
            fast = [value for _, _, value in driver.read(signals, time_s, slow=False)]
            share = self._shares[gpu]
            if share > len(fast):
                turn_s = SLOW_PERIOD_S * (0.5 + 0.5 * noise(self._seed, 1, gpu))
                due = int((at_s + turn_s) / SLOW_PERIOD_S) != int((at_s + turn_s - self.interval_s) / SLOW_PERIOD_S)
                if due or not self._slow[gpu]:
                    self._slow[gpu] = [value for _, _, value in driver.read(signals, time_s, slow=True)]
                fast += self._slow[gpu]
            values += fast[:share]
        return values


class _Chain:
    """What nodes with the same ticks have in common. tick, readings, body: of the newest block."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.tick = 0
        self.readings: list[Reading] = []
        self.body = b""


def _changes(now: Sequence[Reading], then: Sequence[Reading]) -> Iterator[tuple[int, Reading]]:
    """Empty when there was nothing before."""
    pairs = enumerate(zip(now, then, strict=False))
    return ((series_id, new) for series_id, (new, old) in pairs if new != old)


def gpus_for(count: int) -> int:
    return GPUS if count <= GPUS * _series_of_gpu() else GPUS_MANY


def check_series(count: int) -> None:
    """Raises Invalid when no node has so many series."""
    most = GPUS_MANY * _series_of_gpu()
    if not GPUS <= count <= most:
        raise Invalid(
            f"a simulated node has {GPUS} to {most} series, not {count}; choose --series in between",
            Reason.BAD_FIELD,
            field="series",
        )


@lru_cache(4)
def keys_for(count: int) -> list[SeriesKey]:
    """Identity of each series, with names in place of a node's and its GPUs'."""
    gpus = gpus_for(count)
    keys = list[SeriesKey]()
    for gpu in range(gpus):
        share = count // gpus + (gpu < count % gpus)
        device = simulated_device(_NODE, gpu, profiles.profile(PROFILE))
        for metric, labels in _metrics()[:share]:
            kind = METRICS[metric]
            keys.append(series(metric, kind.unit, kind.kind, *device.labels(_NODE), *labels))
    return keys


def packed_dictionary(node: str, count: int) -> bytes:
    """A serialized `Dictionary` with the series of `node`, packed as an agent does it. node: its id, of eight characters or more."""
    profile = profiles.profile(PROFILE)
    told = _template(count, len(node))
    for gpu in range(gpus_for(count)):
        theirs, ours = (simulated_device(name, gpu, profile).uuid for name in (_NODE, node))
        told = told.replace(theirs.encode(), ours.encode())
    return told.replace(_NODE[:1].encode() * len(node), node.encode())


@lru_cache(4)
def _template(count: int, node_chars: int) -> bytes:
    stand_in = _NODE[:1] * node_chars
    keys = [
        replace(key, labels=tuple((name, stand_in if value == _NODE else value) for name, value in key.labels))
        for key in keys_for(count)
    ]
    return packed(dictionary_message(keys, 0, len(keys)), label_sets=True).SerializeToString()


@lru_cache(1)
def _metrics() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Of one GPU, those that change with each tick first."""
    gpu = GpuSignals(profiles.profile(PROFILE), workloads.workload(workloads.DEFAULT, 0), 0, History())
    return [(metric, labels) for slow in (False, True) for metric, labels, _ in driver.read(gpu, BEFORE_S, slow=slow)]


def _series_of_gpu() -> int:
    return len(_metrics())
