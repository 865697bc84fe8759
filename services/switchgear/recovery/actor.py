"""Runs the machine of one job: events in, state stored, then effects out. The same for the service and for standalone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from switchgear.core.clock import Clock
from switchgear.core.errors import Unavailable
from switchgear.recovery import model as m
from switchgear.recovery.machine import step

log = logging.getLogger(__name__)

#: Events that wait; a launcher that reports faster than they are taken is slowed down by its stream.
QUEUE_MAX = 1000
RETRY_S_MAX = 5.0

Keep = Callable[[m.JobState, Sequence[m.Effect]], Awaitable[None]]
Send = Callable[[m.Command], None]
Carry = Callable[[m.Call], Awaitable[None]]
Ask = Callable[[m.AskContact], None]


class JobActor:
    """Owns the state of one job.

    keep: stores state and records, before anything is done about them.
    send: hands a command to the launcher of its node, or drops it when that is not connected.
    carry: makes a call to another service; it may raise and is then tried again.
    ask: begins to ask the scheduler; left out where there is none.
    """

    def __init__(
        self, state: m.JobState, clock: Clock, *, keep: Keep, send: Send, carry: Carry, ask: Ask = lambda _: None
    ) -> None:
        self.state = state
        self._clock = clock
        self._keep, self._send, self._carry, self._ask = keep, send, carry, ask
        self._events: asyncio.Queue[tuple[m.Event, m.Now, asyncio.Future[None] | None]] = asyncio.Queue(QUEUE_MAX)
        self._calls_due = asyncio.Event()
        self._ended = False

    async def post(self, event: m.Event) -> None:
        """Queues an event as of now; waits while the queue is full. An event for a job that has ended is dropped."""
        if not self._ended:
            await self._events.put((event, self._now(), None))

    async def settle(self, event: m.Event) -> None:
        """Queues an event and returns once its state is stored, or the job has ended."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._ended:
            await self._events.put((event, self._now(), done))
        # It may have ended while the queue was full: nobody takes the event then.
        if not self._ended:
            await done

    def tick(self, modes: m.Modes | None = None) -> None:
        """Lets time pass, under these modes from now on. Not while much waits: words of a launcher that are still to be read must not count as its silence."""
        if self._events.qsize() < QUEUE_MAX // 2:
            self._events.put_nowait((m.Tick(modes), self._now(), None))

    async def run(self) -> None:
        """Takes events until the job has ended and every call about it is confirmed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                calls = tasks.create_task(self._make_calls())
                self._calls_due.set()
                while self.state.phase is not m.Phase.ENDED or self.state.outbox:
                    await self._take_next()
                calls.cancel()
        finally:
            self._ended = True
            while not self._events.empty():
                _settled(self._events.get_nowait()[2])

    def _now(self) -> m.Now:
        return m.Now(self._clock.monotonic_s(), self._clock.unix_ns())

    async def _take_next(self) -> None:
        event, posted, done = await self._events.get()
        try:
            await self._take(event, posted)
        except Exception:
            # The state is as before. What nobody foresaw of one event must not end the care for this job, nor for all others.
            log.exception("an event was dropped", extra={"job": self.state.job, "event": type(event).__name__})
        finally:
            _settled(done)

    async def _take(self, event: m.Event, now: m.Now) -> None:
        before, (after, effects) = self.state, step(self.state, event, now)
        records = [e for e in effects if isinstance(e, m.SaveAttempt | m.SaveIncident | m.SaveCheckpoint)]
        stored = any(not isinstance(e, m.AskContact) for e in effects)
        if stored or after.outbox != before.outbox or after.phase is not before.phase:
            await self._store(after, records)
        self.state = after
        if after.phase is not before.phase:
            log.info("job phase", extra={"job": after.job, "phase": after.phase.value, "generation": after.generation})
        for effect in effects:
            if isinstance(effect, m.Start | m.Stop | m.Check | m.Finish):
                self._send(effect)
            elif isinstance(effect, m.AskContact):
                self._ask(effect)
            elif isinstance(effect, m.Warn):
                log.warning(effect.message, extra={"job": after.job, "node": effect.node})
        if after.outbox:
            self._calls_due.set()

    async def _store(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        """Nothing may be done before it is written down, so a store that fails is waited for."""
        delay_s = 0.1
        while True:
            try:
                await self._keep(state, records)
            except Exception as error:
                if not isinstance(error, Unavailable):  # the database has told of its outage
                    log.exception("cannot store the state of a job; trying again", extra={"job": state.job})
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_S_MAX)
            else:
                return

    async def _make_calls(self) -> None:
        while True:
            await self._calls_due.wait()
            self._calls_due.clear()
            done = set[int]()
            while pending := [call for call in self.state.outbox if call.call_id not in done]:
                await self._make_call(pending[0])
                done.add(pending[0].call_id)
                await self.post(m.CallDone(pending[0].call_id))

    async def _make_call(self, call: m.Call) -> None:
        delay_s = 0.1
        while True:
            try:
                await self._carry(call)
            except Exception as error:
                log.warning(
                    "call failed; trying again", extra={"job": self.state.job, "call": call.kind, "error": str(error)}
                )
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_S_MAX)
            else:
                return


def _settled(done: asyncio.Future[None] | None) -> None:
    if done and not done.done():
        done.set_result(None)
