"""Sees checkpoints appear while ranks run, names their step, and takes their digest before anything can happen to them."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from switchgear.launcher import checkpoints
from switchgear.launcher.progress import Commit
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)

_LOWEST_PRIORITY = 19
#: A script that commits faster than we read goes without digests: those files are soon replaced, and a restart verifies all.
_DIGESTS_MAX = 8
#: Files that were renamed but are no checkpoints (logs, bytecode) wait here in vain.
_NAMED_MAX = 64


@dataclass(frozen=True, slots=True)
class _Signature:
    """Differs whenever a file was written again or replaced."""

    inode: int
    size_bytes: int
    modified_ns: int


class CommitWatcher:
    """Watches one checkpoint directory during an attempt.

    report: is given each finding. step_at: the newest step at a wall time, for files that no rank renamed into place.
    finds_others: whether this launcher speaks for such files; one launcher a job does, since all nodes may share the folder.
    """

    def __init__(
        self,
        directory: Path,
        report: Callable[[pb.CheckpointReport], None],
        step_at: Callable[[int], int | None],
        *,
        finds_others: bool,
    ) -> None:
        self._directory = directory
        self._report = report
        self._step_at = step_at
        self._finds_others = finds_others
        self._seen = {path: signature for path in _list(directory) if (signature := _signature(path))}
        self._candidates: dict[Path, _Signature] = {}
        self._named: dict[Path, Commit] = {}
        self._digests: set[asyncio.Task[None]] = set()
        # One thread at the lowest priority: a digest must not take a core from the ranks.
        self._pool = ThreadPoolExecutor(1, "digest", initializer=_lower_priority)

    def committed(self, commit: Commit) -> None:
        """A rank is renaming a checkpoint into place; the next poll that finds it reports it."""
        self._named[commit.path] = commit
        if len(self._named) > _NAMED_MAX:
            del self._named[next(iter(self._named))]

    def poll(self, *, ranks_live: bool) -> None:
        """One look at the directory.

        ranks_live: False for the last look of an attempt: what no rank has renamed into place may then be cut short, and what is
        missing may have been moved by a verification, so only commits count.
        """
        paths = _list(self._directory)
        for path in reversed(paths):  # oldest first
            signature = _signature(path)
            if signature is None or self._seen.get(path) == signature:
                continue
            commit = self._named.pop(path, None)
            if commit is not None:
                self._found(path, signature, commit.step, renamed=True)
            elif not self._finds_others or not ranks_live:
                continue
            elif self._candidates.get(path) == signature:
                self._found(path, signature, self._step_at(signature.modified_ns), renamed=False)
            else:
                self._candidates[path] = signature  # is it still being written? the next look tells
        if not ranks_live:
            return
        for path in set(self._seen) - set(paths):
            del self._seen[path]
            if self._finds_others and not path.exists():
                self._report(pb.CheckpointReport(path=str(path), state=pb.CheckpointReport.EXPIRED))
        self._candidates = {p: s for p, s in self._candidates.items() if p in paths and self._seen.get(p) != s}

    async def close(self) -> None:
        """Waits for digests under way."""
        if self._digests:
            await asyncio.wait(self._digests)
        self._pool.shutdown(wait=False)

    def _found(self, path: Path, signature: _Signature, step: int | None, *, renamed: bool) -> None:
        self._seen[path] = signature
        found = pb.CheckpointReport(
            path=str(path),
            state=pb.CheckpointReport.COMMITTED,
            step=step,
            size_bytes=signature.size_bytes,
            commit_time_unix_ns=signature.modified_ns,
        )
        if renamed:
            self._report(found)
        if len(self._digests) >= _DIGESTS_MAX:
            return
        task = asyncio.create_task(self._examine(path, signature, found, renamed=renamed))
        self._digests.add(task)
        task.add_done_callback(self._digests.discard)

    async def _examine(self, path: Path, signature: _Signature, found: pb.CheckpointReport, *, renamed: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            damage, digest = await loop.run_in_executor(self._pool, _check, path)
        except OSError as error:
            log.info("checkpoint went before its digest was taken", extra={"path": str(path), "error": str(error)})
            return
        if _signature(path) != signature:
            return  # replaced meanwhile: the next poll finds the new one
        if damage and not renamed:
            return  # most likely it is still being written, with a pause; a restart verifies all in any case
        result = pb.CheckpointReport()
        result.CopyFrom(found)
        result.state = pb.CheckpointReport.CORRUPT if damage else pb.CheckpointReport.VERIFIED
        result.damage = damage
        result.digest = digest
        self._report(result)


def _check(path: Path) -> tuple[str, str]:
    damage = checkpoints.check_file(path, "")
    return damage, "" if damage else checkpoints.digest_file(path)


def _list(directory: Path) -> list[Path]:
    return checkpoints.checkpoint_paths(directory)


def _signature(path: Path) -> _Signature | None:
    try:
        # A DCP folder is complete when its metadata is.
        found = (path / checkpoints.DCP_METADATA if path.is_dir() else path).stat()
    except OSError:
        return None
    return _Signature(found.st_ino, found.st_size, found.st_mtime_ns)


def _lower_priority() -> None:
    # On Linux priorities are per thread.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
