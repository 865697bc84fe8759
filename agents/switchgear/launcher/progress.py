"""What a rank's step log means: which step it has reached, since when, and from which checkpoint it started."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from switchgear.launcher.checkpoints import DCP_METADATA, SUFFIXES
from switchgear.launcher.steplog import Event, EventKind, StepLog
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)

_DCP_SHARD = ".distcp"
#: Imports read these; a job may keep its checkpoints beside its code.
_PROGRAM_SUFFIXES = frozenset({".py", ".pyc", ".so"})

#: One tick of the slowest usual kernel (CONFIG_HZ=100).
_FILE_TIME_BEHIND_NS = 10_000_000


def step_base(
    *, catalog_step: int | None, adam_step: int | None, loaded: bool, resumed: bool, fresh: bool
) -> int | None:
    """The step at which an attempt's count is zero; None when no evidence names it.

    catalog_step: step of the checkpoint that was read last. adam_step: the optimizer's own count after its first step here; it wins
    when it goes on from somewhere, for what was read need not be what was taken. A count that begins anew beside a checkpoint that
    was read is that of a script which does not restore its optimizer. loaded: some checkpoint was read. resumed: one was handed
    out, which a rank may also receive from another rank. fresh: there was nothing that it could have gone on from.
    """
    if adam_step is not None and (adam_step > 1 or (adam_step == 1 and catalog_step is None)):
        return adam_step - 1
    if catalog_step is not None:
        return catalog_step
    return 0 if fresh and not loaded and not resumed else None


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

    known_steps: catalog, by path. high_water_step: highest step of earlier attempts. first: no attempt came before. It decides by
    names alone, since the directory may lie on a dead mount.
    """

    log: StepLog
    directory: Path | None
    known_steps: Mapping[Path, int]
    high_water_step: int
    resumed: bool
    first: bool
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
        if count and self.log.named_base is not None:
            self.base = self.log.named_base
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
            checkpoint_ns=self.log.checkpoint_ns,
        )

    def _first_step(self) -> None:
        catalog_step, adam_step = self._catalog_step, self.log.adam_step
        self.base = step_base(
            catalog_step=catalog_step,
            adam_step=adam_step,
            loaded=self._loaded,
            resumed=self.resumed,
            # Without a directory to watch it may have loaded anything from anywhere.
            fresh=self.first or (self.directory is not None and not self.known_steps),
        )
        if catalog_step is not None and self.base != catalog_step:
            log.warning(
                "rank %d read the checkpoint of step %d, and its optimizer says that it goes on from step %s",
                self.log.rank,
                catalog_step,
                self.base,
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
                if step is not None or _looks_like_checkpoint(path, event.path):
                    self._new.append(Load(path, step, time_unix_ns))


def checkpoint_of(directory: Path, relative: str) -> Path:
    """The checkpoint that a file belongs to by its name: itself, or the DCP folder that it lies in."""
    folder, *inside = Path(relative).parts
    return directory / folder if inside and _is_dcp(inside[-1]) else directory / relative


def _is_dcp(name: str) -> bool:
    return name == DCP_METADATA or name.endswith(_DCP_SHARD)


def _looks_like_checkpoint(path: Path, relative: str) -> bool:
    try:
        relative.encode()
    except UnicodeEncodeError:
        return False  # no report can carry it, and no catalog has it
    return path.suffix in SUFFIXES or _is_dcp(Path(relative).name)
