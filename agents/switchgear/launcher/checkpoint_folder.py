"""The checkpoint folder of a job, as its supervisor deals with it: never on the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from switchgear.launcher.commits import CommitWatcher, Signature, signatures
from switchgear.launcher.disk import DiskThread
from switchgear.launcher.progress import Commit
from switchgear.launcher.verify import verify
from switchgear.v1alpha import launcher_service_pb2 as pb

_LOWEST_PRIORITY = 19


class CheckpointFolder:
    """Verified between attempts, watched during one. directory: None when the job keeps no checkpoints; then all is empty."""

    def __init__(self, directory: Path | None, disk: DiskThread) -> None:
        self.directory = directory
        self._disk = disk
        self._digests = DiskThread("digest", nice=_LOWEST_PRIORITY)
        self._seen: Mapping[Path, Signature] = {}
        self._watcher: CommitWatcher | None = None

    async def verify(self, request: pb.VerifyCheckpoints) -> pb.VerifyResult:
        """As `verify` of the same name; never raises."""
        return await verify(self._disk, self.directory, request)

    async def survey(self) -> None:
        """Notes what lies there before an attempt. Raises OSError when it cannot be listed."""
        if self.directory is not None:
            self._seen = await self._disk.run(signatures, self.directory)

    def watch(
        self,
        report: Callable[[pb.CheckpointReport], None],
        step_at: Callable[[int], int | None],
        *,
        finds_others: bool,
    ) -> None:
        """Begins to watch an attempt, after its `survey`; the parameters are those of `CommitWatcher`."""
        if self.directory is not None:
            self._watcher = CommitWatcher(
                self.directory,
                self._seen,
                report,
                step_at,
                looks=self._disk,
                digests=self._digests,
                finds_others=finds_others,
            )

    def poll(self) -> None:
        """Begins a look, unless one is still under way."""
        if self._watcher is not None:
            self._watcher.poll()

    def committed(self, commit: Commit) -> None:
        """A rank is renaming a checkpoint into place."""
        if self._watcher is not None:
            self._watcher.committed(commit)

    def ranks_ended(self) -> None:
        """The attempt is being stopped or has ended: from now on only commits count."""
        if self._watcher is not None:
            self._watcher.ranks_ended()

    async def last_look(self, then: Callable[[], None]) -> None:
        """Ends the watch with a last look, calls `then`, and waits for the digests that are under way."""
        watcher, self._watcher = self._watcher, None
        try:
            if watcher is not None:
                await watcher.last_look()
        finally:
            then()
        if watcher is not None:
            await watcher.close()

    def close(self) -> None:
        """Lets the thread for digests end."""
        self._digests.close()
