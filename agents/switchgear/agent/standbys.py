"""Launchers that a node keeps ready for jobs that may come to it, one for each kind of job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections.abc import Sequence

from switchgear.agent.launcher_process import LauncherSettings
from switchgear.agent.standby import Standby
from switchgear.core.clock import Clock
from switchgear.core.warm import WarmKind

log = logging.getLogger(__name__)

#: What the scheduler names at most; each takes some hundred megabytes.
KINDS_MAX = 2
#: From the news of a kind, or a start on this node, to the next standby: ranks that start need the processors more.
DELAY_S = 5.0
#: So long a standby outlives the last job of its kind: a user who has mended a script starts it again within minutes.
LINGER_S = 300.0
#: One that failed is tried again after this, doubled each time up to the maximum: the reason is mostly in the job.
_RETRY_S = 10.0
_RETRY_S_MAX = 600.0
#: Imports that take longer never end; they must not keep other kinds from being warmed.
_IMPORTS_S_MAX = 300.0
#: SIGKILL takes milliseconds; a process with very much memory to give back takes longer, and needs nobody to wait for it.
_END_S = 2.0


class Standbys:
    """Keeps one standby of each wanted kind, `kinds_max` at most; of one event loop. `run` does the work.

    delay_s, linger_s: see DELAY_S and LINGER_S.
    """

    def __init__(
        self,
        settings: LauncherSettings,
        kinds_max: int,
        clock: Clock,
        delay_s: float = DELAY_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self._settings = settings
        self._kinds_max = kinds_max
        self._clock = clock
        self._delay_s = delay_s
        self._linger_s = linger_s
        self._root = settings.state_dir / "standbys"
        self._wanted: tuple[WarmKind, ...] = ()
        #: Until when those stay that were wanted before, in the order in which they were given up.
        self._lingering_s: dict[WarmKind, float] = {}
        self._standbys: dict[WarmKind, Standby] = {}
        self._due_s: dict[WarmKind, float] = {}
        self._failures: dict[WarmKind, int] = {}
        self._wake = asyncio.Event()

    @property
    def ready(self) -> int:
        """Those that could start ranks at once."""
        return sum(standby.ready for standby in self._standbys.values())

    def want(self, kinds: Sequence[WarmKind]) -> None:
        """The kinds that should be warm, the first ones first. Others end, at the latest after `linger_s`."""
        now_s = self._clock.monotonic_s()
        before, self._wanted = self._wanted, tuple(dict.fromkeys(kinds))[: self._kinds_max]
        self._lingering_s |= dict.fromkeys(before, now_s + self._linger_s)
        self._due_s = {kind: self._due_s.get(kind, now_s + self._delay_s) for kind in self._wanted}
        self._failures = {kind: count for kind, count in self._failures.items() if kind in self._wanted}
        self._wake.set()

    def take(self, kind: WarmKind) -> Standby | None:
        """Gives away the one of that kind, ready or not. For a while nothing is warmed beside the launcher that starts now."""
        due_s = self._clock.monotonic_s() + self._delay_s
        self._due_s = {kind: max(due, due_s) for kind, due in self._due_s.items()}
        self._wake.set()
        standby = self._standbys.get(kind)
        return None if standby is None or standby.failure else self._standbys.pop(kind)

    async def run(self) -> None:
        """Until cancelled; then all standbys end."""
        shutil.rmtree(self._root, ignore_errors=True)
        try:
            while True:
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._advance()):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            await self._end_all()

    async def _end_all(self) -> None:
        for standby in self._standbys.values():
            standby.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                while not all(standby.gone for standby in self._standbys.values()):
                    self._wake.clear()
                    await self._wake.wait()

    def _advance(self) -> float | None:
        """Brings what is there towards what is wanted; answers when to look again, None: when something changes."""
        now_s = self._clock.monotonic_s()
        stay = self._staying(now_s)
        for kind, standby in list(self._standbys.items()):
            if not standby.ready and now_s - standby.started_s > _IMPORTS_S_MAX:
                standby.failure = f"its imports took longer than {_IMPORTS_S_MAX:.0f} s"
            if standby.failure or kind not in stay:
                del self._standbys[kind]
                standby.end()
            if standby.failure and kind in self._wanted:
                self._failed(kind, standby.failure)
            elif standby.ready:
                self._failures.pop(kind, None)
        times_s = list(self._lingering_s.values())
        importing = [standby for standby in self._standbys.values() if not standby.ready]
        missing = [kind for kind in self._wanted if kind not in self._standbys]
        if importing:  # one after the other
            times_s.append(importing[0].started_s + _IMPORTS_S_MAX)
        elif missing:
            kind = min(missing, key=self._due_s.__getitem__)
            if self._due_s[kind] <= now_s:
                self._start(kind)
                return 0
            times_s.append(self._due_s[kind])
        return min(times_s) - now_s if times_s else None

    def _staying(self, now_s: float) -> set[WarmKind]:
        """The kinds whose standbys are kept: those that are wanted, and as many of those before as there is room for."""
        self._lingering_s = {
            kind: until_s
            for kind, until_s in self._lingering_s.items()
            if until_s > now_s and kind not in self._wanted and kind in self._standbys
        }
        room = self._kinds_max - len(self._wanted)
        return {*self._wanted, *(list(self._lingering_s)[-room:] if room else ())}

    def _start(self, kind: WarmKind) -> None:
        try:
            folder = self._root / uuid.uuid4().hex
            self._standbys[kind] = Standby(self._settings, kind, folder, self._clock.monotonic_s(), self._wake.set)
        except OSError as error:
            self._failed(kind, str(error))

    def _failed(self, kind: WarmKind, why: str) -> None:
        count = self._failures[kind] = self._failures.get(kind, 0) + 1
        retry_s = min(_RETRY_S * 2 ** min(count - 1, 10), _RETRY_S_MAX)
        self._due_s[kind] = self._clock.monotonic_s() + retry_s
        log.warning("no launcher can be kept warm", extra={"folder": kind.working_directory, "why": why})
