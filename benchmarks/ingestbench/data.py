"""The samples of a flood once more, for receivers that do not speak our wire: the same labels, values and times."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from switchgear.sim.fleet import flood
from switchgear.sim.fleet.variant import KEYFRAME_EVERY, Variant, packed_dictionary
from switchgear.sim.workloads import seed_of
from switchgear.v1alpha import telemetry_service_pb2 as pb

SEED = 7


@dataclass(frozen=True, slots=True)
class Series:
    """labels: sorted by name, with `__name__`, as Prometheus has them."""

    labels: tuple[tuple[str, str], ...]


def series_of(node: str, count: int) -> list[Series]:
    """What Prometheus would call the series of a simulated node: with the labels that it adds to each target's."""
    message = pb.Dictionary.FromString(packed_dictionary(node, count))
    sets = [[("instance", f"{node}:9400"), ("job", "switchgear"), *one.labels.items()] for one in message.label_sets]
    return [
        Series(tuple(sorted([("__name__", one.metric), *sets[one.label_set - 1]])))
        for one in pb.Dictionary.FromString(zlib.decompress(message.packed)).series
    ]


def values(count: int, ticks: int) -> list[npt.NDArray[np.float64]]:
    """Of each recording that a flood has: shape (ticks, count). A node with the place p (from 0) has recording p modulo their number."""
    made = []
    for number in range(flood.VARIANTS):
        variant = Variant(seed_of(SEED, "flood", number), count, 1.0)
        rows = []
        for tick in range(KEYFRAME_EVERY, KEYFRAME_EVERY + ticks):
            variant.advance(tick)
            rows.append([np.nan if reading.value is None else reading.value for reading in variant.readings])
        made.append(np.array(rows))
    return made
