"""Sees checkpoints appear while ranks run, names their step, and takes their digest before anything can happen to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from switchgear.launcher import checkpoints
from switchgear.launcher.checkpoints import Verdict
from switchgear.launcher.disk import DiskThread
from switchgear.launcher.progress import Commit
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)

#: A script that commits faster than we read goes without digests: those files are soon replaced, and a restart verifies all.
_DIGESTS_MAX = 8
#: Files that were renamed but are no checkpoints (logs, bytecode) wait here in vain.
_NAMED_MAX = 64
#: What the last look may take before the attempt's end is reported without it: no restart waits long for a dead mount.
_LAST_LOOK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Signature:
    """Differs whenever a file was written again or replaced."""

    inode: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class _Look:
    """files: the checkpoints of the folder, oldest first. listed: all of their names. removed: what was seen before and is gone."""

    files: Mapping[Path, Signature]
    listed: Set[Path]
    removed: Set[Path]


def signatures(directory: Path) -> dict[Path, Signature]:
    """The checkpoints in a folder, oldest first. Raises OSError when it cannot be listed."""
    return _signatures(checkpoints.checkpoint_paths(directory))


class CommitWatcher:
    """Watches one checkpoint directory during an attempt.

    seen: `signatures` of before the attempt. report: is given each finding. step_at: the newest step at a wall time, for files that
    no rank renamed into place. finds_others: whether this launcher speaks for such files; one launcher a job does, since all nodes
    may share the folder. looks, digests: do what touches the disk; the latter at the lowest priority, for a digest must not take a
    core from the ranks.
    """

    def __init__(
        self,
        directory: Path,
        seen: Mapping[Path, Signature],
        report: Callable[[pb.CheckpointReport], None],
        step_at: Callable[[int], int | None],
        *,
        looks: DiskThread,
        digests: DiskThread,
        finds_others: bool,
    ) -> None:
        self._directory = directory
        self._seen = dict(seen)
        self._report = report
        self._step_at = step_at
        self._looks = looks
        self._digest_thread = digests
        self._finds_others = finds_others
        self._ranks_live = True
        self._troubled = False
        self._candidates: dict[Path, Signature] = {}
        self._named: dict[Path, Commit] = {}
        self._look_task: asyncio.Task[None] | None = None
        self._digests: set[asyncio.Task[None]] = set()

    def committed(self, commit: Commit) -> None:
        """A rank is renaming a checkpoint into place; the next look that finds it reports it."""
        self._named[commit.path] = commit
        if len(self._named) > _NAMED_MAX:
            del self._named[next(iter(self._named))]

    def poll(self) -> None:
        """Begins a look at the directory, unless one is still under way."""
        if self._look_task is None or self._look_task.done():
            self._look_task = asyncio.create_task(self._look())

    def ranks_ended(self) -> None:
        """From now on only commits count.

        What no rank has renamed into place may be cut short, and what is missing may have been moved by a verification.
        """
        self._ranks_live = False

    async def last_look(self) -> None:
        """Reports the commits that no look has found yet; gives up after a while."""
        try:
            async with asyncio.timeout(_LAST_LOOK_TIMEOUT_S):
                if self._look_task is not None:
                    await asyncio.wait([self._look_task])
                await self._look()
        except TimeoutError:
            log.warning("checkpoint folder %s does not answer: its last commits are not reported", self._directory)

    async def close(self) -> None:
        """Waits for digests under way."""
        if self._digests:
            await asyncio.wait(self._digests)

    async def _look(self) -> None:
        try:
            look = await self._looks.run(_look, self._directory, frozenset(self._seen))
        except OSError as error:
            if not self._troubled:
                log.warning("cannot list checkpoint folder %s: %s", self._directory, checkpoints.errno_text(error))
            self._troubled = True
            return
        self._troubled = False
        for path, signature in look.files.items():
            if self._seen.get(path) == signature:
                continue
            commit = self._named.pop(path, None)
            if commit is not None:
                self._found(path, signature, commit.step, renamed=True)
            elif not self._finds_others or not self._ranks_live:
                continue
            elif self._candidates.get(path) == signature:
                self._found(path, signature, self._step_at(signature.modified_ns), renamed=False)
            else:
                self._candidates[path] = signature  # is it still being written? the next look tells
        if not self._ranks_live:
            return
        for path in self._seen.keys() - look.listed:
            del self._seen[path]
            if self._finds_others and path in look.removed:
                self._report(pb.CheckpointReport(path=str(path), state=pb.CheckpointReport.EXPIRED))
        self._candidates = {p: s for p, s in self._candidates.items() if p in look.listed and self._seen.get(p) != s}

    def _found(self, path: Path, signature: Signature, step: int | None, *, renamed: bool) -> None:
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
        if self._digest_thread.pending >= _DIGESTS_MAX:
            return
        task = asyncio.create_task(self._examine(path, signature, found, renamed=renamed))
        self._digests.add(task)
        task.add_done_callback(self._digests.discard)

    async def _examine(self, path: Path, signature: Signature, found: pb.CheckpointReport, *, renamed: bool) -> None:
        verdict = await self._digest_thread.run(_examine, path, signature)
        if verdict is None:
            return  # replaced meanwhile: the next look finds the new one
        if not verdict.readable:
            log.info("no digest of a checkpoint was taken", extra={"path": str(path), "error": verdict.damage})
            return
        if verdict.damage and not renamed:
            return  # most likely it is still being written, with a pause; a restart verifies all in any case
        result = pb.CheckpointReport()
        result.CopyFrom(found)
        result.state = pb.CheckpointReport.CORRUPT if verdict.damage else pb.CheckpointReport.VERIFIED
        result.damage = verdict.damage.encode("utf-8", "replace").decode()
        result.digest = "" if verdict.damage else verdict.digest
        self._report(result)


def _look(directory: Path, seen: Set[Path]) -> _Look:
    paths = checkpoints.checkpoint_paths(directory)
    return _Look(_signatures(paths), set(paths), {path for path in seen - set(paths) if _is_gone(path)})


def _signatures(paths: Sequence[Path]) -> dict[Path, Signature]:
    return {path: signature for path in reversed(paths) if (signature := _signature(path))}


def _examine(path: Path, signature: Signature) -> Verdict | None:
    verdict = checkpoints.examine(path, "")
    return verdict if _signature(path) == signature else None


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _signature(path: Path) -> Signature | None:
    try:
        # A DCP folder is complete when its metadata is.
        found = (path / checkpoints.DCP_METADATA if path.is_dir() else path).stat()
    except OSError:
        return None
    return Signature(found.st_ino, found.st_size, found.st_mtime_ns)
