"""What the planner was asked and what it decided, on disk: `switchgear simulate replay` makes the same decisions from it."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import Snapshot
from switchgear.planner.records import decisions_to_json, snapshot_from_json, snapshot_to_json
from switchgear.scheduler.decide import Planned

log = logging.getLogger(__name__)

#: A file is packed off by whoever wants to keep it; the largest fleet with the largest queue fills one with some hundred plans.
FILE_BYTES_MAX = 32 << 20
#: The oldest go: some thousand plans of the largest fleet, a million of a small one.
FILES_MAX = 8
SUFFIX = ".plans"
_LENGTHS = struct.Struct(">II")
#: What no plan is longer than; beyond it a file is damaged.
_FRAME_BYTES_MAX = 1 << 30


@dataclass(frozen=True, slots=True)
class LoggedPlan:
    """decisions: as JSON, for an exact comparison."""

    snapshot: Snapshot
    now_s: float
    decisions: bytes


class DecisionLog:
    """Appends to the newest file of a folder; one process writes there. Each record is a plan of its own, so a torn one loses no other.

    What cannot be written is told and left out: no job waits for a disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._failed = False

    def append(self, planned: Planned) -> None:
        record = _packed(planned)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._place(len(record), planned.now_s).open("ab") as file:
                file.write(record)
        except OSError as error:
            if not self._failed:
                log.error("plans cannot be kept for replay in %s: %s; free some space", self._folder, error.strerror)
            self._failed, self._file = True, None
        else:
            self._failed = False

    def _place(self, size: int, now_s: float) -> Path:
        """The file for a record; a new one after a start, since the last record of the one before may be torn."""
        if self._file is None or not self._file.exists() or self._file.stat().st_size + size > FILE_BYTES_MAX:
            self._file = self._folder / f"{round(now_s * 1000):015d}{SUFFIX}"
            for old in sorted(self._folder.glob(f"*{SUFFIX}"))[: -(FILES_MAX - 1)]:
                old.unlink()
        return self._file


def read(path: Path) -> Iterator[LoggedPlan]:
    """The plans of a file, or of a folder in the order of time; a torn end of a file is left out. Raises Invalid when it is no such log."""
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise Invalid(
            f"{path} has no logs of plans: the scheduler keeps them under scheduler/plans in its state directory",
            Reason.BODY_INVALID,
        )
    for file in files:
        yield from _read_file(file)


def _packed(planned: Planned) -> bytes:
    parts = [
        zlib.compress(part, 3)
        for part in (snapshot_to_json(planned.snapshot, planned.now_s), decisions_to_json(planned.decisions))
    ]
    return _LENGTHS.pack(*map(len, parts)) + b"".join(parts)


def _read_file(path: Path) -> Iterator[LoggedPlan]:
    with path.open("rb") as file:
        while len(head := file.read(_LENGTHS.size)) == _LENGTHS.size:
            lengths: tuple[int, int] = _LENGTHS.unpack(head)
            if max(lengths) > _FRAME_BYTES_MAX:
                raise _damaged(path)
            packed = [file.read(length) for length in lengths]
            if [len(part) for part in packed] != list(lengths):
                return
            try:
                snapshot, decisions = (zlib.decompress(part) for part in packed)
            except zlib.error:
                raise _damaged(path) from None
            yield LoggedPlan(*snapshot_from_json(snapshot), decisions)


def _damaged(path: Path) -> Invalid:
    return Invalid(f"{path} is no log of plans, or is damaged; name another", Reason.BODY_INVALID)
