"""Follows one service: looks, decides, keeps what must outlive us, publishes; again and again."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from switchgear.autoscaler.decision_file import DecisionFile
from switchgear.autoscaler.decision_log import Head, Record
from switchgear.autoscaler.external import state
from switchgear.autoscaler.external.board import Board, Published
from switchgear.autoscaler.external.deciding import FIRST_LOOK, Decided, Deciding
from switchgear.autoscaler.external.looking import Looker
from switchgear.autoscaler.external.metrics import ExternalMetrics
from switchgear.autoscaler.observation import Decision
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

#: So many looks may fail before a decision is too old to be acted on. Of a fleet that takes longer than its interval, of the time it takes.
GOOD_INTERVALS = 3
#: Between two looks while there is to be no replica: whoever comes first waits for this and a cold start, and little is to be fetched.
AT_ZERO_S = 1.0
#: From one that could not be kept to the next try: each begins a file, for which a policy forgets what is under way.
KEEP_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Edges:
    """What a follower works with. folder: of its service's state and decisions; it is there."""

    board: Board
    metrics: ExternalMetrics
    clock: Clock
    folder: Path


class Follower:
    """One service. The policy's clock goes on over restarts: `ahead_s` is it less our monotonic clock."""

    def __init__(self, deciding: Deciding, looker: Looker, edges: Edges, *, interval_s: float, ahead_s: float) -> None:
        self._deciding, self._looker, self._edges = deciding, looker, edges
        self._interval_s, self._ahead_s = interval_s, ahead_s
        self._file = DecisionFile(edges.folder / "decisions")
        self._blind = ""
        self._seen_s: float | None = None
        self._keep_from_s = 0.0
        self._failure = ""
        #: Why nothing was decided, as said last.
        self._trouble = ""
        self._at_zero = False

    async def run(self) -> None:
        """Until cancelled."""
        clock = self._edges.clock
        try:
            while True:
                began_s = clock.monotonic_s()
                try:
                    await self.look()
                    self._failure = ""
                except Exception as error:
                    if repr(error) != self._failure:  # it may come with each look
                        log.exception("a look at %s failed", self._deciding.name)
                    self._failure = repr(error)
                    self._file.close()  # a decision may be missing in it, so what follows could not be decided again
                took_s = clock.monotonic_s() - began_s
                self._edges.metrics.look.labels(self._deciding.name).observe(took_s)
                pause_s = min(AT_ZERO_S, self._interval_s) if self._at_zero else self._interval_s
                await asyncio.sleep(max(0.0, pause_s - took_s))
        finally:
            self._file.close()

    async def look(self) -> None:
        """One look and what follows from it. What is published has been stored before, so that a restart goes on from it."""
        clock, name = self._edges.clock, self._deciding.name
        look = await self._looker.look(clock.unix_ns() / 1e9)
        unix_s, now_s = clock.unix_ns() / 1e9, self._now_s()
        keeps = now_s >= self._keep_from_s
        head = self._deciding.new_head() if keeps and self._file.needs_head else None
        # On a thread: KEDA gets its answers also while a policy thinks about a thousand replicas.
        decided = await asyncio.to_thread(self._deciding.step, now_s, unix_s, look)
        if decided.record is None:
            if decided.text not in (FIRST_LOOK, self._trouble):
                log.warning("%s: nothing is decided yet: %s", name, decided.text, extra={"service": name})
            self._trouble = decided.text
            return
        self._at_zero = decided.desired == 0
        self._tell(decided, decided.record.decision)
        self._edges.metrics.decisions.labels(name, decided.record.decision.cause).inc()
        if keeps:
            await asyncio.to_thread(self._keep, decided.record, head, self._deciding.state(now_s, unix_s))
        self._edges.board.post(name, self._published(decided, decided.record.seen.interval_s))

    def _now_s(self) -> float:
        return self._edges.clock.monotonic_s() + self._ahead_s

    def _published(self, decided: Decided, took_s: float) -> Published:
        """took_s: since the decision before."""
        now_s = self._edges.clock.monotonic_s()
        if not decided.blind:
            self._seen_s = now_s
        return Published(
            desired=decided.desired,
            current=decided.current,
            blind=decided.blind,
            held=decided.held,
            good_until_s=now_s + GOOD_INTERVALS * max(self._interval_s, took_s),
            seen_s=self._seen_s,
        )

    def _keep(self, record: Record, head: Head | None, kept: state.State) -> None:
        """A full disk is no reason to let users wait: what cannot be kept is decided and published all the same."""
        try:
            state.save(self._edges.folder / state.FILE, kept)
            self._file.append(record, head)
        except OSError as error:
            self._file.close()
            self._keep_from_s = kept.now_s + KEEP_AGAIN_S
            log.error(
                "decisions about %s cannot be kept, a restart would not go on from them: %s", self._deciding.name, error
            )

    def _tell(self, decided: Decided, decision: Decision) -> None:
        name, blind = self._deciding.name, decided.blind
        if blind and not self._blind:
            log.warning(
                "%s is not seen: %s; %d replicas are held", name, blind, decided.desired, extra={"service": name}
            )
        elif self._blind and not blind:
            log.warning("%s is seen again", name, extra={"service": name})
        self._blind = blind
        log.info(
            "%s: %d replicas desired, %d there: %s",
            name,
            decided.desired,
            decided.current,
            decided.text,
            extra={"service": name, "desired": decided.desired, "cause": decision.cause},
        )
