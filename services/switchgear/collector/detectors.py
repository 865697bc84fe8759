"""From what agents tell, and from their silence, to signals. Pure: times are passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from switchgear.collector.model import Event, Severity, Signal, signal_id
from switchgear.core.catalog import AGENT_KINDS, COLLECTOR_KINDS, DRIVER_KINDS, GPU_LOST, NODE_KINDS, judge
from switchgear.core.catalog import KINDS as KERNEL_KINDS

#: A GPU that is gone, however it is told: recovery and scheduler know it by this name.
_GPU_LOST = "GPU_LOST"
_LOST_KINDS = frozenset({"GPU_FALLEN_OFF_BUS", _GPU_LOST})
_OLD_NAMES = {"SXID_FATAL": "SXID"}
_SILENT = "NODE_SILENT"
#: Kinds of all signals that are raised here.
KINDS = (
    _GPU_LOST,
    _SILENT,
    *(
        kind
        for kinds in (KERNEL_KINDS, NODE_KINDS, DRIVER_KINDS, AGENT_KINDS, COLLECTOR_KINDS)
        for kind in kinds
        if kind not in _LOST_KINDS
    ),
)


def signals_of(event: Event) -> list[Signal]:
    """The signals that one event raises; none for a kind that is not known here."""
    found = judge(event.kind, event.code, event.text, event.detail)
    if found is None:
        return []
    lost = event.kind in _LOST_KINDS or (event.kind == "XID" and event.code == GPU_LOST)
    kind = _GPU_LOST if lost else _OLD_NAMES.get(event.kind, event.kind)
    return [_signal(event, kind, found.severity, found.action)]


def _signal(event: Event, kind: str, severity: Severity, action: str) -> Signal:
    return Signal(
        signal_id=signal_id(*event.key),
        node=event.node,
        gpu=event.gpu,
        kind=kind,
        severity=severity,
        action=action,
        evidence=event.text,
        time_unix_ns=event.time_unix_ns,
        simulated=event.simulated,
    )


class Silence:
    """Notices agents that are gone for longer than `silence_s`; each silence is told once.

    Times are of one monotonic clock, in seconds. Bounded by the number of nodes.
    """

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._gone_since_s: dict[str, float] = {}

    def heard(self, node: str) -> None:
        """The agent of `nodes/{node}` has a stream."""
        self._gone_since_s.pop(node, None)

    def gone(self, node: str, now_s: float) -> None:
        """The agent has no stream any more, or none yet."""
        self._gone_since_s.setdefault(node, now_s)

    def told(self, node: str, now_s: float) -> None:
        """The silence that was due then has been told. Another one may have begun meanwhile."""
        if self._gone_since_s.get(node, math.inf) <= now_s:
            del self._gone_since_s[node]

    def due(self, now_s: float) -> list[tuple[str, float]]:
        """Nodes whose silence is to be told now, each with its length in seconds; call `told` when that is done."""
        return [
            (node, now_s - since_s)
            for node, since_s in sorted(self._gone_since_s.items())
            if now_s - since_s > self._silence_s
        ]


def silence_signal(
    node: str, silent_s: float, now_unix_ns: int, missing: str = "telemetry stream from the node's agent"
) -> Signal:
    """A warning, no more: the agent may have died alone while the ranks go on; their launcher's own silence decides that."""
    return Signal(
        signal_id=signal_id("silence", node, now_unix_ns),
        node=node,
        gpu=None,
        kind=_SILENT,
        severity=Severity.WARNING,
        action="",
        evidence=f"no {missing} for {silent_s:.0f} s",
        time_unix_ns=now_unix_ns,
        simulated=False,
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """The same moment on both clocks."""

    unix_ns: int
    monotonic_s: float


class Detection:
    """All detectors together: the same for a collector that is live and for a recording that is replayed."""

    def __init__(self, silence_s: float) -> None:
        self._silence = Silence(silence_s)

    def heard(self, node: str) -> None:
        """The agent of `nodes/{node}` has a stream."""
        self._silence.heard(node)

    def gone(self, node: str, since_s: float) -> None:
        """The agent has no stream any more, or none yet."""
        self._silence.gone(node, since_s)

    def told(self, event: Event) -> list[Signal]:
        """What an event raises."""
        return signals_of(event)

    def told_silent(self, node: str, then: Moment) -> None:
        """What `silent` said then has been told."""
        self._silence.told(node, then.monotonic_s)

    def silent(self, now: Moment) -> list[Signal]:
        """Silences that are to be told now; call `told_silent` when that is done."""
        return [silence_signal(node, silent_s, now.unix_ns) for node, silent_s in self._silence.due(now.monotonic_s)]
