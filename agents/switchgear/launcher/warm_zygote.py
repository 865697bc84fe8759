"""The zygote of a supervisor through its lives: asked for, started, ready, ended; at most one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.launcher.state import Process
from switchgear.launcher.zygote import Ended, Event, RankSpec, Zygote, ZygoteError

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
    """Starts a zygote when asked and follows it to its end; what happens in it arrives at `on_event`, on the loop, in order.

    python, env, cwd, log_path: what it is started with.
    """

    def __init__(
        self,
        python: str,
        env: Mapping[str, str],
        cwd: str,
        log_path: Path,
        on_event: Callable[[Event | Launching | NotWarm], None],
    ) -> None:
        self._python = python
        self._env = env
        self._cwd = cwd
        self._log_path = log_path
        self._on_event = on_event
        self._zygote: Zygote | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def present(self) -> bool:
        """Whether there is one, or will be in a moment."""
        return self._task is not None

    @property
    def ready(self) -> bool:
        """Whether it can fork ranks now."""
        return self._zygote is not None and self._zygote.ready

    @property
    def identity(self) -> Process | None:
        """Its process, which leads a group; None while there is none."""
        return None if self._zygote is None else self._zygote.identity

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

    async def close(self) -> None:
        """Lets it go and waits until it has ended with all that it started; none is started any more."""
        self._closing = True
        if self._zygote is not None:
            self._zygote.close()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        try:
            self._zygote = await Zygote.start(self._python, self._env, self._cwd, self._log_path)
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
