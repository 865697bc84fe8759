"""What the agent serves at `/metrics`: the node's series under the names that dashboards know, and the agent's own."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest

from switchgear.agent.readings import Reading, SeriesKey
from switchgear.agent.sampler import Sampler


def exposition(readings: Iterable[Reading]) -> str:
    """Prometheus' text format 0.0.4; an unknown series is left out, never written as 0.

    Not prometheus_client's: it puts `_total` behind every counter's name, and dcgm-exporter's counters have none.
    """
    families = dict[str, list[tuple[SeriesKey, float]]]()
    for reading in readings:
        if reading.value is not None:
            families.setdefault(reading.key.metric, []).append((reading.key, reading.value))
    lines = list[str]()
    for metric, family in families.items():
        lines.append(f"# TYPE {metric} {family[0][0].kind.value}")
        for key, value in family:
            labels = ",".join(f'{name}="{_escape(text)}"' for name, text in key.labels)
            lines.append(f"{metric}{{{labels}}} {_number(value)}" if labels else f"{metric} {_number(value)}")
    return "".join(f"{line}\n" for line in lines)


def _number(value: float) -> str:
    return f"{'+' if value > 0 else '-'}Inf" if math.isinf(value) else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def page(sampler: Sampler, registry: CollectorRegistry) -> bytes:
    """The whole page: the node's series, then those of the registry."""
    return exposition(sampler.latest()).encode() + generate_latest(registry)
