"""The zygote of a supervisor through its lives: asked for, started, ready, ended; at most one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.core.warm import WarmKind
from switchgear.launcher.state import Process
from switchgear.launcher.zygote import Ended, Event, RankSpec, Ready, Zygote, ZygoteError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launching:
    """The zygote's process runs and imports."""


@dataclass(frozen=True, slots=True)
class NotWarm:
    """No zygote can be started. permanent: no retry mends it."""

    message: str
    permanent: bool


class WarmZygote:
    """Starts a zygote when asked and follows it to its end.

    kind, log_path: what it is started with. nice: of its first imports. What happens in it arrives, on the loop and in order, at who
    has `attach`ed.
    """

    def __init__(self, kind: WarmKind, log_path: Path, nice: int = 0) -> None:
        self.kind = kind
        self._log_path = log_path
        self._nice = nice
        self._on_event: Callable[[Event | Launching | NotWarm], None] = lambda _: None
        self._zygote: Zygote | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def present(self) -> bool:
        """Whether there is one, or will be in a moment."""
        return self._task is not None

    @property
    def ready(self) -> Ready | None:
        """What its imports came to, once it can fork ranks."""
        return None if self._zygote is None else self._zygote.ready

    @property
    def identity(self) -> Process | None:
        """Its process, which leads a group; None while there is none."""
        return None if self._zygote is None else self._zygote.identity

    def attach(self, on_event: Callable[[Event | Launching | NotWarm], None]) -> None:
        """Warms one up unless it is there; what has happened to that so far is told again."""
        self._on_event = on_event
        if not self.present:
            self.warm_up()
        elif self._zygote is not None:
            self._deliver(Launching())
            if self._zygote.ready:
                self._deliver(self._zygote.ready)

    def move_log(self, log_path: Path) -> None:
        """Takes the file of its output along, as far as that goes; what is started later writes there in any case."""
        before, self._log_path = self._log_path, log_path
        with contextlib.suppress(OSError):
            before.replace(log_path)
            if self._zygote is not None:
                self._zygote.log_path = log_path

    def hurry(self) -> None:
        """Its imports are waited for."""
        if self._zygote is not None and self._nice and not self._zygote.ready:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, self._zygote.identity.pid, os.getpriority(os.PRIO_PROCESS, 0))
        self._nice = 0

    def warm_up(self) -> None:
        """Begins to start one; `Ready` follows, or `NotWarm`."""
        self._task = asyncio.create_task(self._run())

    def start_ranks(self, specs: Sequence[RankSpec]) -> None:
        if self._zygote is not None:
            self._zygote.start_ranks(specs)

    def signal(self, pids: Sequence[int], number: int) -> None:
        """Sends a signal to the groups of those ranks that still live."""
        if self._zygote is not None:
            self._zygote.signal(pids, number)

    def lease(self, until_s: float) -> None:
        """Has it end all ranks at that time on CLOCK_MONOTONIC, whatever becomes of us."""
        if self._zygote is not None:
            self._zygote.lease(until_s)

    def kill(self) -> None:
        """SIGKILL to the zygote itself; `Ended` follows."""
        if self._zygote is not None:
            self._zygote.kill()

    def look(self) -> None:
        """Kills one that is stopped; to be called each quarter of a second."""
        if self._zygote is not None:
            self._zygote.look()

    async def close(self) -> None:
        """Lets it go and waits until it has ended with all that it started; none is started any more."""
        self._closing = True
        if self._zygote is not None:
            self._zygote.close()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        try:
            self._zygote = await Zygote.start(self.kind, self._log_path, self._nice)
        except ZygoteError as error:
            self._task = None
            self._deliver(NotWarm(str(error), error.permanent))
            return
        self._deliver(Launching())
        if self._closing:
            self._zygote.close()  # `close` came while it was being started
        await self._zygote.run(self._deliver)

    def _deliver(self, event: Event | Launching | NotWarm) -> None:
        if isinstance(event, Ended):
            self._zygote = None
            self._task = None
        try:
            self._on_event(event)
        except Exception:  # supervision goes on whatever one event brings
            log.exception("cannot take %s", event)
