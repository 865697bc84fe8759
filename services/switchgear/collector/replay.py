"""What today's detectors make of what was recorded. Pure: the only clock is the recording's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from switchgear.collector import health
from switchgear.collector.detectors import Detection, Moment
from switchgear.collector.health import NodeHealth, NodeVerdict
from switchgear.collector.model import Event, Signal
from switchgear.collector.recording.happenings import Happening, What

#: What may differ of a signal that is the same.
_COMPARED = ("severity", "action", "kind", "gpu", "evidence", "time_unix_ns", "simulated")


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """why: in a sentence."""

    node: str
    before: NodeVerdict
    after: NodeVerdict
    why: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One of: a signal that is raised today, one that was raised then, a verdict that changes."""

    time_unix_ns: int
    raised: Signal | None = None
    recorded: Signal | None = None
    verdict: VerdictChange | None = None

    @property
    def node(self) -> str:
        told = self.raised or self.recorded or self.verdict
        return told.node if told else ""


class Replay:
    """silence_s: instead of the one that the collector had then.

    Each life of a collector has its own detectors, as then; nodes' health goes through all of them. Begins with nodes of which nothing
    is known: a fault that was told before the recording begins is not open.
    """

    def __init__(self, silence_s: float | None = None) -> None:
        self._silence_s = silence_s
        self._detections: dict[str, Detection] = {}
        self._health: dict[str, NodeHealth] = {}
        #: Nodes on which something ends by itself, and when.
        self._expires: dict[str, int] = {}
        self._events = set[tuple[str, str, int]]()
        self._signals: tuple[set[str], set[str]] = set(), set()

    def run(self, happenings: Iterable[Happening]) -> Iterator[Outcome]:
        """happenings: in the order in which they were recorded. The same ones give the same outcomes."""
        for happening in happenings:
            yield from self._take(happening)

    def _take(self, one: Happening) -> Iterator[Outcome]:
        detection = self._detections.get(one.run_id)
        if detection is None:
            # Each file begins with STARTED.
            detection = self._detections[one.run_id] = Detection(self._silence_s or one.silence_s or 0.0)
            for node in sorted(self._health):
                yield from self._step(health.restarted(self._health[node], one.moment.unix_ns), one.moment)
        now = one.moment
        match one.what:
            case What.CONNECTED:
                detection.heard(one.node)
                yield from self._step(health.heard(self._of(one), one.boot_id, one.epoch, now.unix_ns), now)
            case What.HEARD:
                yield from self._step(health.heard(self._of(one), "", "", now.unix_ns), now)
            case What.GONE:
                detection.gone(one.node, now.monotonic_s)
            case What.TOLD if one.event is not None and one.event.key not in self._events:
                self._events.add(one.event.key)
                for signal in detection.told(one.event):
                    yield from self._raise(signal, now, one.event)
            case What.LOOKED:
                for signal in detection.silent(now):
                    detection.told_silent(signal.node, now)
                    yield from self._raise(signal, now)
                for node in sorted(node for node, at_ns in self._expires.items() if at_ns <= now.unix_ns):
                    yield from self._step(health.passed(self._health[node], now.unix_ns), now)
            case What.CLEARED:
                yield from self._step(health.cleared(self._of(one), one.gpu, one.text, now.unix_ns), now)
            case What.FOUND if one.signal is not None:
                yield from self._raise(one.signal, now)
                yield from self._recorded(one.signal, now.unix_ns)
            case What.RAISED if one.signal is not None:
                # A silence is stored some time after it was found: a part of a recording has both or neither.
                found_ns = one.signal.time_unix_ns if one.signal.kind == health.SILENT else now.unix_ns
                yield from self._recorded(one.signal, found_ns)

    def _raise(self, signal: Signal, now: Moment, event: Event | None = None) -> Iterator[Outcome]:
        if signal.signal_id in self._signals[0]:
            return
        self._signals[0].add(signal.signal_id)
        yield Outcome(now.unix_ns, raised=signal)
        known = self._health.get(signal.node) or NodeHealth(signal.node, since_unix_ns=now.unix_ns)
        after = (
            health.silent(known, signal, now.unix_ns)
            if event is None
            else health.told(known, event, signal, now.unix_ns)
        )
        yield from self._step(after, now)

    def _recorded(self, signal: Signal, time_unix_ns: int) -> Iterator[Outcome]:
        if signal.signal_id not in self._signals[1]:
            self._signals[1].add(signal.signal_id)
            yield Outcome(time_unix_ns, recorded=signal)

    def _of(self, one: Happening) -> NodeHealth:
        return self._health.get(one.node) or NodeHealth(one.node, since_unix_ns=one.moment.unix_ns)

    def _step(self, after: NodeHealth, now: Moment) -> Iterator[Outcome]:
        before = self._health.get(after.node)
        self._health[after.node] = after
        if (expires_unix_ns := after.expires_unix_ns) is not None:
            self._expires[after.node] = expires_unix_ns
        else:
            self._expires.pop(after.node, None)
        verdict = before.verdict if before else NodeVerdict.HEALTHY
        if after.verdict is not verdict:
            yield Outcome(now.unix_ns, verdict=VerdictChange(after.node, verdict, after.verdict, after.change))


@dataclass(frozen=True, slots=True)
class Difference:
    """then, today: None when it was not raised. changed: names of what differs when both are there."""

    then: Signal | None
    today: Signal | None
    changed: Sequence[str] = ()

    @property
    def time_unix_ns(self) -> int:
        signal = self.today or self.then
        return signal.time_unix_ns if signal else 0


@dataclass(slots=True)
class Comparison:
    """Signals of then and of today. Those with the same id are the same; so are others of one node and kind, in their order."""

    then: dict[str, Signal] = field(default_factory=dict)
    today: dict[str, Signal] = field(default_factory=dict)

    def take(self, outcome: Outcome) -> None:
        if outcome.raised is not None:
            self.today[outcome.raised.signal_id] = outcome.raised
        if outcome.recorded is not None:
            self.then[outcome.recorded.signal_id] = outcome.recorded

    def differences(self) -> list[Difference]:
        """Oldest first."""
        found = list[Difference]()
        added = list[Signal]()
        missing = dict[tuple[str, str, int | None], list[Signal]]()
        for signal_id, then in self.then.items():
            if signal_id not in self.today:
                missing.setdefault((then.node, then.kind, then.gpu), []).append(then)
        for signal_id, today in self.today.items():
            if signal_id not in self.then:
                added.append(today)
            elif changed := _changed(self.then[signal_id], today):
                found.append(Difference(self.then[signal_id], today, changed))
        for today in added:
            alike = missing.get((today.node, today.kind, today.gpu))
            before = alike.pop(0) if alike else None
            found.append(Difference(before, today, _changed(before, today) if before else ()))
        found += [Difference(then, None) for left in missing.values() for then in left]
        return sorted(found, key=lambda one: one.time_unix_ns)


def _changed(then: Signal, today: Signal) -> list[str]:
    return [name for name in _COMPARED if getattr(then, name) != getattr(today, name)]
