"""Where step logs lie: in memory while a rank writes, in the state folder afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from pathlib import Path

from switchgear.launcher import steplog
from switchgear.launcher.state import is_held

#: Generations whose step logs are kept (at most 1.6 MB a rank each): the proof that generations never overlapped.
GENERATIONS_KEPT = 20
_ABANDONED_S = 24 * 3600.0
#: Symbolic link in a live folder to the state folder that it belongs to.
_OWNER = "owner"
_LIVE = re.compile(r"(\d+)-(\d+)")


class StepLogFiles:
    """Makes, finds and archives the step logs of one launcher.

    Live ones lie in /dev/shm: a mapping of a file on a disk can block its writer for as long as the disk's journal commits, and
    the hook must never cost a step. Without /dev/shm, or when it is full, they lie in the state folder.
    """

    def __init__(self, state_dir: Path, shared_memory: Path = Path("/dev/shm")) -> None:  # noqa: S108  # checked in _own_folder
        self._archive = state_dir / "steplogs"
        self._fallback = state_dir / "live-steplogs"
        tag = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]
        self._live = shared_memory / f"switchgear-{os.getuid()}-{tag}"

    def sweep(self) -> None:
        """Removes what launchers that were killed and never started again have left in memory for a day or longer."""
        for folder in self._live.parent.glob(f"switchgear-{os.getuid()}-*"):
            try:
                state_dir = (folder / _OWNER).readlink()
                if time.time() - folder.stat().st_mtime > _ABANDONED_S and not is_held(state_dir):
                    shutil.rmtree(folder)
            except OSError:
                continue  # not one of ours, or another launcher was faster

    def create(self, generation: int, rank: int) -> Path:
        """A new live step log. Raises OSError when there is no room for it anywhere."""
        if _own_folder(self._live):
            owner = self._live / _OWNER
            if not owner.is_symlink():
                owner.symlink_to(self._archive.parent.absolute())
            path = self._live / f"{generation}-{rank}"
            try:
                steplog.create(path)
            except OSError:  # containers often have 64 MB, and data loaders use it too
                pass
            else:
                return path
        self._fallback.mkdir(exist_ok=True)
        path = self._fallback / f"{generation}-{rank}"
        steplog.create(path)
        return path

    def archived(self, generation: int, rank: int) -> Path:
        """Where the step log of an ended attempt lies."""
        return self._archive / str(generation) / f"rank-{rank}.steplog"

    def archive(self, generation: int) -> None:
        """Moves the live step logs of that and earlier generations, whose ranks are gone, into the state folder. Raises OSError."""
        for folder in (self._live, self._fallback):
            if folder.is_symlink() or not folder.is_dir():
                continue
            for path in folder.iterdir():
                match = _LIVE.fullmatch(path.name)
                if match and int(match[1]) <= generation:
                    self._archive_one(path, int(match[1]), int(match[2]))
        generations = sorted((int(p.name) for p in self._archive.glob("*") if p.name.isdigit()), reverse=True)
        for old in generations[GENERATIONS_KEPT:]:
            shutil.rmtree(self._archive / str(old), ignore_errors=True)

    def close(self) -> None:
        """Removes the empty live folder, so that nothing stays in memory after the launcher."""
        try:
            (self._live / _OWNER).unlink()
            self._live.rmdir()
        except OSError:
            pass

    def _archive_one(self, path: Path, generation: int, rank: int) -> None:
        log = steplog.StepLog(path)
        try:
            if log.started:
                target = self.archived(generation, rank)
                target.parent.mkdir(parents=True, exist_ok=True)
                log.copy_to(target)
        finally:
            log.close()
        path.unlink()


def _own_folder(path: Path) -> bool:
    """Whether `path` is a folder that only we may write, made now when missing: others may create names in /dev/shm too."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
