"""Whose turn it is: runs of one job that follow each other, and may not know of each other's end.

Slurm starts a requeued job anew while ranks of its last run may still live, on a node that Slurm has lost sight of. So each run writes
into a folder that all of them see, which newer runs make older ones end. The folder is beside the checkpoints: a run that cannot reach
it cannot spoil them either.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

log = logging.getLogger(__name__)

#: Beyond those that anybody asks about; a job of a year that is requeued each day has as many.
KEPT = 400
_NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Turn:
    """One run. generation: newest that it may have started. stopped: nothing that it started lives any more.

    given_up: nodes, by Slurm's names, that this run and those before it went on without.
    """

    number: int
    job_id: int
    restarts: int
    generation: int = 0
    stopped: bool = False
    given_up: tuple[str, ...] = ()


class Turns:
    """The runs that use one folder. What is read and written here may wait for a network: call it in a thread. All raise OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Turn | None:
        """None: there is none yet. One of which only the number can be read counts as not stopped."""
        number = self._newest_number()
        if not number:
            return None
        if turn := self.read(number):
            return turn
        # Its generation is known by no file, but those before it wrote theirs.
        known = [turn for each in range(max(1, number - KEPT), number) if (turn := self.read(each))]
        return replace(known[-1], number=number, stopped=False) if known else Turn(number, 0, 0)

    def begin(self, job_id: int, restarts: int) -> Turn:
        """The next turn is the caller's; whoever had the last one finds that it is over."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.newest()
        number = before.number + 1 if before else 1
        while not self._reserve(number):
            number += 1
        generation, given_up = (before.generation, before.given_up) if before else (0, ())
        turn = Turn(number, job_id, restarts, generation, given_up=given_up)
        self.write(turn)
        self._replace(self.folder / _NEWEST, str(number))
        self._path(number - KEPT).unlink(missing_ok=True)
        return turn

    def has(self, turn: Turn) -> bool:
        """Whether it is still the newest."""
        return self._newest_number() == turn.number

    def read(self, number: int) -> Turn | None:
        """None: it cannot be read, or is none."""
        try:
            entry = json.loads(self._path(number).read_text(encoding="utf-8"))
            return Turn(**{**entry, "given_up": tuple(entry["given_up"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            log.warning("%s is damaged; what it said is not known", self._path(number))
            return None

    def write(self, turn: Turn) -> None:
        self._replace(self._path(turn.number), json.dumps(asdict(turn)))

    def _newest_number(self) -> int:
        try:
            return int((self.folder / _NEWEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0
        except ValueError:  # damaged; each run has a file of its own
            return max((int(path.stem.removeprefix("run-")) for path in self.folder.glob("run-*.json")), default=0)

    def _reserve(self, number: int) -> bool:
        try:
            os.close(os.open(self._path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        return True

    def _path(self, number: int) -> Path:
        return self.folder / f"run-{number}.json"

    def _replace(self, path: Path, text: str) -> None:
        """As a whole, and on disk: after a power cut it still says who came before."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
