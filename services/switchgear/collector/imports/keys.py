"""Names of what others export, as the collector's. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from sys import intern

from switchgear.collector.series import Kind, SeriesKey
from switchgear.core import names

#: As of agents' series.
LABELS_MAX, NAME_CHARS_MAX = 32, 256
#: Why a series is not taken in: it has more or longer labels than one may have.
LABELS = "labels"
_NOT_IN_A_METRIC = re.compile(r"[^a-zA-Z0-9_:]")
_NOT_IN_A_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_PORT = re.compile(r":\d{1,5}$")


def series_key(metric: str, unit: str, labels: Iterable[tuple[str, str]], *, counter: bool) -> SeriesKey | str:
    """The key, or why there is none. Labels without a value are left out: they mean the same."""
    pairs = tuple(sorted((intern(name), intern(value)) for name, value in labels if value))
    texts = [metric, unit, *(text for pair in pairs for text in pair)]
    if len(pairs) > LABELS_MAX or max(map(len, texts)) > NAME_CHARS_MAX:
        return LABELS
    return SeriesKey(intern(metric), intern(unit), pairs, Kind.COUNTER if counter else Kind.GAUGE)


@lru_cache(maxsize=16_384)
def prometheus_metric(name: str) -> str:
    """As Prometheus would name OpenTelemetry's metric, without its unit: `system.cpu.time` is `system_cpu_time`."""
    return _named(_NOT_IN_A_METRIC.sub("_", name))


@lru_cache(maxsize=16_384)
def prometheus_label(name: str) -> str:
    """The same for an attribute."""
    return _named(_NOT_IN_A_LABEL.sub("_", name))


def _named(name: str) -> str:
    return f"_{name}" if not name or name[0].isdigit() else name


@lru_cache(maxsize=16_384)
def node_of(text: str) -> str:
    """`nodes/{node}` of a host's name, with or without a port; "" when nothing of it can stand in a name.

    An agent names its node in the same way, so a host is one node whoever tells of it.
    """
    host = text if text.count(":") > 1 and not text.startswith("[") else _PORT.sub("", text)
    node = names.to_id(host, "")
    return names.node_name(node) if node else ""
