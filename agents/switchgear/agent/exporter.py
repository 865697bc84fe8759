"""What the agent serves at `/metrics`: the node's series under the names that dashboards know, and the agent's own.

A scrape measures nothing: it shows what the last tick found, and a second scrape within a tick gets the same text again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest

from switchgear.agent.readings import Reading, SeriesKey
from switchgear.agent.sources.blocked import WHAT as BLOCKED
from switchgear.agent.sources.gpu_metrics import METRICS

#: Labels that say who uses a GPU, by GPU index and MIG GPU instance ("" for a whole GPU).
UserLabels = Mapping[tuple[str, str], tuple[tuple[str, str], ...]]
_NOBODY: UserLabels = {}
_HOST = "node_"


class Exporter:
    """Renders the page; from any thread.

    latest: newest reading of every series, in an order that only grows. registry: the agent's own metrics.
    users: who uses the GPUs now; the same object as long as that does not change.
    host_metrics: whether `node_*` is shown, which node_exporter beside us shows as well.
    """

    def __init__(
        self,
        latest: Callable[[], list[Reading]],
        registry: CollectorRegistry,
        users: Callable[[], UserLabels] = lambda: _NOBODY,
        *,
        host_metrics: bool = True,
    ) -> None:
        self._latest = latest
        self._registry = registry
        self._users = users
        self._host_metrics = host_metrics
        self._lock = threading.Lock()
        self._layout = _Layout([], _NOBODY, host_metrics=host_metrics)
        self._shown: list[Reading] = []
        self._text: Sequence[bytes] = ()

    def page(self) -> bytes:
        """Prometheus' text format 0.0.4; a series whose value is unknown is left out, never written as 0.

        Not prometheus_client's renderer, nor OpenMetrics: both want `_total` behind a counter's name, and dcgm-exporter's have none.
        """
        return b"".join((*self._node(), generate_latest(self._registry)))

    def _node(self) -> Sequence[bytes]:
        with self._lock:
            readings, users = self._latest(), self._users()
            same_layout = len(readings) == self._layout.series and users is self._layout.users
            if same_layout and readings == self._shown:
                return self._text
            if not same_layout:
                self._layout = _Layout([reading.key for reading in readings], users, host_metrics=self._host_metrics)
            self._shown, self._text = readings, self._layout.render(readings)
            return self._text


class _Layout:
    """All of the page but the values: they change with each tick, the rest hardly ever."""

    def __init__(self, keys: Sequence[SeriesKey], users: UserLabels, *, host_metrics: bool) -> None:
        self.series = len(keys)
        self.users = users
        families = dict[str, list[tuple[int, str]]]()
        self._families = list[tuple[str, list[tuple[int, str]]]]()
        for number, key in enumerate(keys):
            if key.metric.startswith(_HOST) and not host_metrics:
                continue
            family = families.get(key.metric)
            if family is None:
                family = families[key.metric] = []
                self._families.append((_header(key), family))
            family.append((number, _name(key, users)))

    def render(self, readings: Sequence[Reading]) -> list[bytes]:
        """The text in pieces, one for each family: of all in one string there would be three at a time, a megabyte."""
        pieces = list[bytes]()
        for header, family in self._families:
            # A family whose series are all unknown is not mentioned.
            known = [
                f"{name} {_number(value)}\n" for number, name in family if (value := readings[number][1]) is not None
            ]
            if known:
                pieces.append(f"{header}{''.join(known)}".encode())
        return pieces


def _header(key: SeriesKey) -> str:
    what = _what(key.metric)
    described = f"# HELP {key.metric} {_escape_help(what)}\n" if what else ""
    return f"{described}# TYPE {key.metric} {key.kind.value}\n"


def _what(metric: str) -> str:
    """What the metric means, in words; "" when nothing is known of it."""
    if metric in METRICS:
        return METRICS[metric].what
    return "As node_exporter's metric of this name" if metric.startswith(_HOST) else BLOCKED.get(metric, "")


def _name(key: SeriesKey, users: UserLabels) -> str:
    labels = key.labels
    if users:
        found = dict(labels)
        # Links and processors have a label `gpu` in other tables; only a GPU's own series says which one by its UUID.
        if "UUID" in found:
            labels = (*labels, *users.get((found["gpu"], found.get("GPU_I_ID", "")), ()))
    text = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return f"{key.metric}{{{text}}}" if text else key.metric


def _number(value: float) -> str:
    text = repr(value)
    return text if text[-1] != "f" else f"{'+' if value > 0 else '-'}Inf"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
