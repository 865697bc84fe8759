"""The decision logs of all services on disk. What cannot be written is counted, and scaling goes on."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from switchgear.autoscaler.decision_file import DecisionFile
from switchgear.autoscaler.scaling import Decided

log = logging.getLogger(__name__)


class Journal:
    """folder: has one folder for each service, which goes with its service; None: nothing is kept. failed: called for each loss."""

    def __init__(self, folder: Path | None, failed: Callable[[], None]) -> None:
        self._folder, self._failed = folder, failed
        self._files: dict[str, DecisionFile] = {}

    def folder(self, service: str) -> Path | None:
        """Where the log of `inferenceServices/{service}` is."""
        return self._folder / service.rpartition("/")[2] if self._folder else None

    def begins(self, service: str) -> bool:
        """Whether the next decision begins a file."""
        if self._folder is None:
            return False
        return service not in self._files or self._files[service].needs_head

    def begin_anew(self) -> None:
        """A process that begins does not go on in the files of the one before."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    async def append(self, decided: Mapping[str, Decided]) -> None:
        """By service."""
        if self._folder is not None and decided:
            await asyncio.to_thread(self._append, dict(decided))

    async def keep(self, services: Collection[str]) -> None:
        """Removes the logs of all other services that this process has written."""
        for service in self._files.keys() - set(services):
            self._files.pop(service).close()
            if folder := self.folder(service):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _append(self, decided: Mapping[str, Decided]) -> None:
        for service, one in decided.items():
            folder = self.folder(service)
            assert folder is not None  # noqa: S101 - asked above
            file = self._files.setdefault(service, DecisionFile(folder))
            try:
                file.append(one.record, one.head)
            except (OSError, ValueError):
                self._failed()
                log.exception("a decision of %s is not in its log", service)
