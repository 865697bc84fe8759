"""The recovery process in virtual time: actor, launcher sessions, watches and store, all of which a crash cuts short.

It follows `recovery.actor`, `recovery.launchers` and `recovery.main`. Between any two things that the process does it may die; then
only what was stored is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import TypeAdapter
from simworld.kernel import Kernel
from simworld.launcher import Grant, Heartbeat
from simworld.network import Stream
from simworld.scheduler import Refused, SimScheduler

from switchgear.recovery import model as m
from switchgear.recovery.machine import LEASE_S, resume, step
from switchgear.recovery.watching import GONE_S

TICK_S = 1.0
WORK_S = (0.0005, 0.005)
CALL_S = (0.002, 0.1)
WATCH_S = (0.005, 0.2)
_STATE = TypeAdapter(m.JobState)


@dataclass
class Disk:
    """What the store holds: it survives every crash."""

    state: m.JobState | None = None
    signal_cursor: int = 0
    attempts: dict[int, m.Attempt] = field(default_factory=dict)
    incidents: dict[str, m.Incident] = field(default_factory=dict)
    #: Calls that were ever in a stored outbox, by id.
    intents: dict[int, m.Call] = field(default_factory=dict)


class Control:
    """taken: called after each event with (before, event, after, effects). crash_probability: at each boundary of an event with effects."""

    def __init__(self, kernel: Kernel, scheduler: SimScheduler, spec: m.Spec) -> None:
        self.kernel, self.scheduler, self.spec = kernel, scheduler, spec
        self.disk = Disk()
        self.signals: list[m.NodeSignal] = []
        self.carried: list[int] = []
        self.crash_probability = 0.0
        self.down_s = (0.2, 4.0)
        self.taken: Callable[[m.JobState, m.Event, m.JobState, Sequence[m.Effect]], None] = lambda *_: None
        self.is_connected: Callable[[str], bool] = lambda _: True
        #: What is to happen when the job next enters a phase with at least this generation; each once.
        self.on_phase: list[tuple[m.Phase, int, Callable[[], None]]] = []
        self.alive = False
        self.state: m.JobState | None = None
        self._life = 0
        self._sessions: dict[str, Stream] = {}
        #: A dict for its order: a seed must tell the same story each time.
        self._streams: dict[Stream, None] = {}
        self._queue: deque[tuple[m.Event, m.Now, Callable[[], None]]] = deque()
        self._working = self._calling = self._signalling = False
        self._called: set[int] = set()

    # The life of the process.

    def start(self) -> None:
        self.alive = True
        self._life += 1
        if self.disk.state and not self._over(self.disk.state):
            self.state = resume(
                _STATE.validate_python(_STATE.dump_python(self.disk.state, mode="json", exclude={"watches"})),
                self.kernel.now,
            )
        self._later(WATCH_S, self._take_job)
        self._later(WATCH_S, self._next_signal)
        self._tick()
        self._carry()

    def crash(self, down_s: float) -> None:
        if not self.alive:
            return
        self.kernel.note(f"recovery   killed for {down_s:.1f} s")
        self.alive, self.state = False, None
        self._life += 1
        self._queue.clear()
        self._sessions.clear()
        self._working = self._calling = self._signalling = False
        self._called.clear()
        for stream in self._streams:
            stream.on_server_end = lambda: None
            stream.close_server()
        self._streams.clear()
        self.kernel.after(down_s, self.start)

    def stall(self, seconds: float) -> None:
        """The store hangs: nothing is taken from the queue."""
        if self.alive and not self._working:
            self.kernel.note(f"recovery   store hangs for {seconds:.1f} s")
            self._working = True
            self._later((seconds, seconds), self._work)

    def _later(self, delay_s: tuple[float, float], what: Callable[[], None]) -> None:
        life = self._life
        self.kernel.after(self.kernel.between(*delay_s), lambda: what() if self._life == life else None)

    @property
    def over(self) -> bool:
        return self.disk.state is not None and self._over(self.disk.state)

    def _over(self, state: m.JobState) -> bool:
        return state.phase is m.Phase.ENDED and not state.outbox

    # Sessions of launchers.

    def connect(self, stream: Stream) -> None:
        """A launcher has opened a stream."""
        life = self._life
        self._streams[stream] = None
        stream.server_takes = lambda message: self._take_report(stream, message) if self._life == life else None
        stream.on_server_end = lambda: self._session_over(stream)

    def _take_report(self, stream: Stream, message: object) -> None:
        if isinstance(message, m.LauncherHello) and self._sessions.get(stream.node) is not stream:
            if self.disk.state and self._over(self.disk.state):
                stream.down.send(m.Finish(stream.node, message.generation, "the job has ended"))
                return
            if (
                self.state is None or message.launcher_epoch > self.state.epoch
            ):  # not known yet: connect again in a moment
                self._streams.pop(stream, None)
                stream.close_server()
                return
            stream.epoch = message.launcher_epoch
            if farewell := self._farewell(stream):
                stream.down.send(m.Finish(stream.node, message.generation, farewell))
                return
            if older := self._sessions.get(stream.node):
                self._streams.pop(older, None)
                older.on_server_end = lambda: None
                older.close_server()
            self._sessions[stream.node] = stream
            stream.launcher_id = message.launcher_id
        if isinstance(message, Heartbeat):
            if self.state:
                self._post(m.LauncherSeen(stream.node, stream.launcher_id))
                farewell = self._farewell(stream)
                stream.down.send(m.Finish(stream.node, 0, farewell) if farewell else Grant(message.sequence, LEASE_S))
        elif isinstance(message, m.Event):
            self._post(message)

    def _farewell(self, stream: Stream) -> str:
        """Why this launcher should go; empty when it has its place."""
        state = self.state
        if state is None or state.phase is m.Phase.ENDED:
            return "the job has ended"
        slot = next((slot for slot in state.slots if slot.node == stream.node), None)
        return "no longer part of the placement" if slot is None or stream.epoch < slot.launcher_epoch else ""

    def _session_over(self, stream: Stream) -> None:
        self._streams.pop(stream, None)
        if self._sessions.get(stream.node) is stream:
            del self._sessions[stream.node]
            self._post(m.LauncherGone(stream.node, stream.launcher_id))
            self._later((GONE_S + 0.01, GONE_S + 0.01), lambda: self._post(m.Tick()) if self.state else None)

    def _send(self, command: m.Command) -> None:
        if session := self._sessions.get(command.node):
            session.down.send(command)

    # The actor.

    def _post(self, event: m.Event, done: Callable[[], None] = lambda: None) -> None:
        self._queue.append((event, self.kernel.now, done))
        if not self._working:
            self._working = True
            self._later(WORK_S, self._work)

    def _work(self) -> None:
        self._working = False
        if not self._queue:
            return
        event, posted, done = self._queue.popleft()
        life = self._life
        self._take(event, posted)
        if self._life != life:
            return
        done()
        if self._queue and not self._working:
            self._working = True
            self._later(WORK_S, self._work)

    def _take(self, event: m.Event, posted: m.Now) -> None:
        before = self.state
        if before is None:
            return
        after, effects = step(before, event, posted)
        stores = (
            any(not isinstance(e, m.AskContact) for e in effects)
            or after.outbox != before.outbox
            or after.phase is not before.phase
        )
        if stores and self._dies_here():  # before anything is stored: as if the event had not come
            return
        if stores:
            self._store(after, effects)
        self.taken(before, event, after, effects)
        self.state = after
        if after.phase is not before.phase:
            due = [w for w in self.on_phase if w[0] is after.phase and after.generation >= w[1]]
            self.on_phase = [w for w in self.on_phase if w not in due]
            for _, _, happens in due:
                self.kernel.after(0.0, happens)
        for effect in effects:
            if isinstance(effect, m.AskContact):
                self._later(CALL_S, partial(self._ask, effect.node))
        commands = [e for e in effects if isinstance(e, m.Start | m.Stop | m.Check | m.Finish)]
        for command in commands:
            if self._dies_here():
                return
            self._send(command)
        if stores and self._dies_here():
            return
        if self._over(after):
            self.state = None
        self._carry()

    def _dies_here(self) -> bool:
        if self.kernel.chance(self.crash_probability):
            self.crash(self.kernel.between(*self.down_s))
            return True
        return False

    def _store(self, state: m.JobState, effects: Sequence[m.Effect]) -> None:
        self.disk.state = state
        for call in state.outbox:
            self.disk.intents.setdefault(call.call_id, call)
        for effect in effects:
            match effect:
                case m.SaveAttempt(attempt):
                    self.disk.attempts[attempt.generation] = attempt
                case m.SaveIncident(incident):
                    self.disk.incidents[incident.incident_id] = incident
                case _:
                    pass

    def _tick(self) -> None:
        if self.state:
            self._post(m.Tick())
        self._later((TICK_S, TICK_S), self._tick)

    # Calls to the scheduler.

    def _ask(self, node: str) -> None:
        if self.state and self.kernel.now_s >= self.scheduler.away_until_s:
            self._post(m.ContactKnown(node, self.is_connected(node)))

    def _carry(self) -> None:
        if self.state is None or self._calling:
            return
        call = next((c for c in self.state.outbox if c.call_id not in self._called), None)
        if call is None:
            return
        self._calling = True
        # The scheduler may well take a call whose caller has died meanwhile.
        self.kernel.after(self.kernel.between(*CALL_S) / 2, partial(self._reach, call, self._life))

    def _reach(self, call: m.Call, life: int) -> None:
        dead = self._life != life
        away = self.kernel.now_s < self.scheduler.away_until_s
        if away or (dead and self.kernel.chance(0.5)) or self.kernel.chance(0.1):
            if not dead:
                self._later((0.1, 1.0), self._try_again)  # UNAVAILABLE
            return
        try:
            self.scheduler.call(call)
        except Refused as refusal:
            self.kernel.note(f"scheduler  refused: {refusal}")
        self.carried.append(call.call_id)
        if not dead:
            self._later((CALL_S[0] / 2, CALL_S[1] / 2), lambda: self._answered(call))

    def _try_again(self) -> None:
        self._calling = False
        self._carry()

    def _answered(self, call: m.Call) -> None:
        self._calling = False
        self._called.add(call.call_id)
        self._post(m.CallDone(call.call_id))
        self._carry()

    # Watches.

    def job_changed(self) -> None:
        if self.alive:
            self._later(WATCH_S, self._take_job)

    def _take_job(self) -> None:
        scheduler = self.scheduler
        if scheduler.ended:
            if self.state:
                self._post(m.EndedOutside(scheduler.message))
            return
        if not scheduler.placement:
            return
        if self.state is None:
            if self.disk.state:
                return
            self.state = m.JobState(scheduler.job, self.spec, self.kernel.now_ns)
        self._post(m.Placed(scheduler.epoch, scheduler.placement))
        if scheduler.state == "PREEMPTED":
            self._post(m.Vacate(scheduler.message))

    def signal(self, signal: m.NodeSignal) -> None:
        """The collector has a new fatal signal."""
        self.signals.append(signal)
        if self.alive:
            self._later(WATCH_S, self._next_signal)

    def _next_signal(self) -> None:
        """At least once each, in order: the cursor moves when the state with it is stored."""
        if self._signalling or self.disk.signal_cursor >= len(self.signals):
            return
        signal = self.signals[self.disk.signal_cursor]
        if self.state is None or not any(slot.node == signal.node for slot in self.state.slots):
            self._signal_done()
            return
        self._signalling = True
        self._post(replace(signal), self._signal_done)

    def _signal_done(self) -> None:
        self._signalling = False
        if not self._dies_here():
            self.disk.signal_cursor += 1
            self._next_signal()
