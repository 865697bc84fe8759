"""What a rank's step log means: which step it has reached, since when, and from which checkpoint it started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from switchgear.launcher.checkpoints import DCP_METADATA, checkpoint_paths
from switchgear.launcher.steplog import Event, EventKind, StepLog
from switchgear.v1alpha import launcher_service_pb2 as pb

#: Imports read these; a job may keep its checkpoints beside its code.
_PROGRAM_SUFFIXES = frozenset({".py", ".pyc", ".so"})

#: One tick of the slowest usual kernel (CONFIG_HZ=100).
_FILE_TIME_BEHIND_NS = 10_000_000


def step_base(*, catalog_step: int | None, adam_step: int | None, loaded: bool, resumed: bool) -> int | None:
    """The step at which an attempt's count is zero; None when no evidence names it.

    catalog_step: step of the checkpoint that was loaded. adam_step: the optimizer's own count after its first step here.
    loaded: some checkpoint was read. resumed: one was handed out, which a rank may also receive from another rank.
    """
    if catalog_step is not None:
        return catalog_step
    if adam_step is not None and adam_step > 0:
        return adam_step - 1
    return None if loaded or resumed else 0


@dataclass(frozen=True, slots=True)
class Load:
    """A rank read the checkpoint at `path`; step: as the catalog has it. time_unix_ns: when it was opened."""

    path: Path
    step: int | None
    time_unix_ns: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A rank renamed the checkpoint at `path` into place; step: None when the state in it cannot be named."""

    path: Path
    step: int | None
    time_unix_ns: int


@dataclass(slots=True)
class RankProgress:
    """Follows one step log; `poll` reads what is new.

    known_steps: catalog, by path. high_water_step: highest step of earlier attempts.
    """

    log: StepLog
    directory: Path | None
    known_steps: Mapping[Path, int]
    high_water_step: int
    resumed: bool
    base: int | None = None
    first_step_unix_ns: int = 0
    first_new_step_unix_ns: int = 0
    _catalog_step: int | None = None
    _loaded: bool = False
    _events_seen: int = 0
    _loads_seen: set[Path] = field(default_factory=set)
    _new: list[Load | Commit] = field(default_factory=list)

    def poll(self) -> list[Load | Commit]:
        """What the rank did with checkpoints since the last call; brings all other fields up to date."""
        self._new = []
        if not self.log.started:
            return []
        count = self.log.count  # before the events: a load that we see then came before any step that we do not
        if self.directory is not None:
            for event in self.log.events(self._events_seen):
                self._events_seen = event.sequence
                self._take(event, self.directory)
        if count and not self.first_step_unix_ns:
            self._first_step()
        if count and self.base is not None and not self.first_new_step_unix_ns:
            record = self.log.record(max(1, self.high_water_step - self.base + 1))
            if record is not None:
                self.first_new_step_unix_ns = self.log.unix_ns(record.end_ns)
        return self._new

    @property
    def count(self) -> int:
        return self.log.count if self.log.started else 0

    def step(self) -> int | None:
        """Newest completed step; None while no evidence names it."""
        return None if self.base is None else self.base + self.count

    def step_at(self, modified_ns: int) -> int | None:
        """Newest step that was complete when a file was last written; None when that cannot be told.

        modified_ns: the file's own time, which the kernel takes from a clock that may be a tick behind.
        """
        before, after = (self.log.record_at(ns) for ns in (modified_ns, modified_ns + _FILE_TIME_BEHIND_NS))
        return None if self.base is None or before is None or before != after else self.base + before.count

    def to_proto(self, rank: int) -> pb.RankStep:
        newest = self.log.record(self.count)
        return pb.RankStep(
            rank=rank,
            step=self.step(),
            count=self.count,
            time_unix_ns=0 if newest is None else self.log.unix_ns(newest.end_ns),
            first_step_time_unix_ns=self.first_step_unix_ns,
            first_new_step_time_unix_ns=self.first_new_step_unix_ns,
        )

    def _first_step(self) -> None:
        self.base = step_base(
            catalog_step=self._catalog_step, adam_step=self.log.adam_step, loaded=self._loaded, resumed=self.resumed
        )
        first = self.log.record(1)
        if first is not None:
            self.first_step_unix_ns = self.log.unix_ns(first.end_ns)

    def _take(self, event: Event, directory: Path) -> None:
        path = checkpoint_of(directory, event.path)
        time_unix_ns = self.log.unix_ns(event.time_ns)
        if event.kind is EventKind.COMMITTED:
            if self.count and not self.first_step_unix_ns:
                self._first_step()
            step = None if self.base is None or event.count is None else self.base + event.count
            self._new.append(Commit(path, step, time_unix_ns))
        elif event.count == 0 and path.suffix not in _PROGRAM_SUFFIXES:
            # What is read after the first step is looked at, not started from.
            step = self.known_steps.get(path)
            self._loaded = True
            self._catalog_step = self._catalog_step if step is None else step
            if path not in self._loads_seen:
                self._loads_seen.add(path)
                if step is not None or path in checkpoint_paths(directory):
                    self._new.append(Load(path, step, time_unix_ns))


def checkpoint_of(directory: Path, relative: str) -> Path:
    """The checkpoint that a file belongs to: itself, or the DCP folder that it lies in."""
    folder = directory / Path(relative).parts[0]
    return folder if (folder / DCP_METADATA).exists() else directory / relative
