"""The launcher's spans: a command's begins when it comes and ends when a report says that it is done."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.core import trace
from switchgear.core.clock import Clock
from switchgear.launcher.settings import LauncherSettings
from switchgear.v1alpha import launcher_service_pb2 as pb

#: Commands that are under way at a time: one of each kind, and those that a newer generation has overtaken.
OPEN_MAX = 16
_NAMES = {"start": "start attempt", "stop": "stop attempt", "verify": "verify checkpoints"}


@dataclass(slots=True)
class _Open:
    parent: str
    start_ns: int
    ranks_started: int = 0


class Spans:
    """Hears what goes over the wire, both ways.

    The first span is the launcher's own start, from `start_ns` to its first hello; `parent` is what the agent started it for.
    """

    def __init__(self, settings: LauncherSettings, parent: str, start_ns: int, clock: Clock) -> None:
        self._clock = clock
        self._ranks = settings.spec.nproc_per_node
        self._about = {"switchgear.job": settings.job, "switchgear.node": settings.node}
        self._process: _Open | None = _Open(parent, start_ns)
        self._open: dict[tuple[str, int], _Open] = {}

    def commanded(self, command: pb.LauncherCommand) -> None:
        """A command has come."""
        kind = command.WhichOneof("kind")
        if kind in _NAMES:
            self._open.setdefault((kind, command.generation), _Open(command.trace_parent, self._clock.unix_ns()))
            if len(self._open) > OPEN_MAX:
                del self._open[next(iter(self._open))]

    def reported(self, report: pb.LauncherReport) -> None:
        """A report has been handed over."""
        generation = report.generation
        match report.WhichOneof("kind"):
            case "hello" if self._process:
                self._record("start launcher process", self._process, report.time_unix_ns, generation)
                self._process = None
            case "rank_started" if start := self._open.get(("start", generation)):
                start.ranks_started += 1
                if start.ranks_started == self._ranks:
                    self._close("start", generation, report.rank_started.time_unix_ns)
            case "start_failed":
                self._close("start", generation, report.time_unix_ns, report.start_failed.message)
            case "attempt_stopped":
                self._close("start", generation, report.time_unix_ns, "stopped before all ranks had started")
                self._close("stop", generation, report.attempt_stopped.time_unix_ns)
            case "verify_result":
                self._close("verify", generation, report.verify_result.time_unix_ns, report.verify_result.error)

    def _close(self, kind: str, generation: int, end_ns: int, error: str = "") -> None:
        if opened := self._open.pop((kind, generation), None):
            self._record(_NAMES[kind], opened, end_ns, generation, error)

    def _record(self, name: str, opened: _Open, end_ns: int, generation: int, error: str = "") -> None:
        about: trace.Attributes = {**self._about, "switchgear.generation": generation}
        trace.record(name, opened.start_ns, end_ns, parent=opened.parent, attributes=about, error=error)
