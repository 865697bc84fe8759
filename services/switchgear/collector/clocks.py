"""The clocks of all nodes, and the events of those that go wrong. Pure: times are passed in."""

from __future__ import annotations

from switchgear.collector.clock_offset import ClockOffset
from switchgear.collector.model import Event

#: Nodes whose offset is known; the scheduler has no more nodes, and one that is forgotten is measured again.
NODES_MAX = 10_000
#: A clock that comes and goes is told no more often.
_TOLD_NS_MIN = 60_000_000_000
_SOURCE = "collector"


class Clocks:
    """run_id: of this life of the collector; its events count from 1 in it."""

    def __init__(self, bound_s: float, run_id: str) -> None:
        self._bound_s = bound_s
        self._run_id = run_id
        self._sequence = 0
        self._offsets: dict[str, ClockOffset] = {}
        #: When a node's clock was last told to be wrong (True) or right again.
        self._told: dict[str, tuple[bool, int]] = {}

    def of(self, node: str) -> ClockOffset:
        """The clock of `nodes/{node}`, whose agent has come."""
        clock = self._offsets.pop(node, None) or ClockOffset(self._bound_s)
        self._offsets[node] = clock
        if len(self._offsets) > NODES_MAX:
            gone = next(iter(self._offsets))
            del self._offsets[gone]
            self._told.pop(gone, None)
        return clock

    def offsets_s(self) -> dict[str, float]:
        """How far the clocks are behind ours, of nodes beyond the bound."""
        return {node: clock.offset_ns / 1e9 for node, clock in self._offsets.items() if clock.is_skewed}

    def is_told_wrong(self, node: str) -> bool:
        return node in self._told and self._told[node][0]

    def changed(self, node: str, clock: ClockOffset, now_unix_ns: int) -> Event | None:
        """The event that tells that a node's clock is wrong, or right again, when that has not been told."""
        offset_s = clock.offset_ns / 1e9
        told, at_unix_ns = self._told.get(node, (False, now_unix_ns - _TOLD_NS_MIN))
        if bool(offset_s) is told or now_unix_ns - at_unix_ns < _TOLD_NS_MIN:
            return None
        self._told[node] = bool(offset_s), now_unix_ns
        self._sequence += 1
        if offset_s:
            kind = "CLOCK_SKEW"
            text = (
                f"the node's clock is {abs(offset_s):.1f} s {'behind' if offset_s > 0 else 'ahead of'} the collector's"
            )
        else:
            kind = "CLOCK_RIGHT"
            text = f"the node's clock is within {self._bound_s:g} s of the collector's again"
        return Event(
            node=node,
            boot_id=self._run_id,
            source=_SOURCE,
            sequence=self._sequence,
            time_unix_ns=now_unix_ns,
            kind=kind,
            gpu=None,
            code=None,
            text=text,
            simulated=False,
        )
