"""Which ranks of this node make no step or are held, from looks at each of them a few times a second. Pure; time is passed in.

It says what is so and decides nothing: whether a job hangs is seen only across all of its nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from switchgear.launcher.activity import Activity

#: Steps that the median is taken over.
STEPS = 100
#: A learned time rests on at least so many steps of the attempt; the first ones compile and warm up.
_STEPS_MIN = 3
#: The slowest step counts for half of what it did after a thousand further steps.
_FORGET = 0.5 ** (1 / 1000)
#: Without progress for this many learned step times, and at least so long, a rank is told of: well before anybody acts (at three
#: step times and three seconds), for stacks take their time.
_SILENT_STEPS = 1.5
SILENT_S_MIN = 1.0
#: Without a learned time nobody knows what is long: imports and the set-up of NCCL take this on a quiet machine.
_SILENT_UNKNOWN_S = 30.0
#: Looks that CPU time is measured over: one second of them.
_LOOKS = 5
_NO_STEP = frozenset({Activity.CHECKPOINT, Activity.EVALUATION, Activity.COMPILE})
#: May take much longer than a step; who comes back from it has got on.
_PAUSES = _NO_STEP | {Activity.DATA, Activity.UNKNOWN}


class StepTimes:
    """How long a step of this job takes, from the end of one to the end of the next, whatever a script does between.

    A rank keeps it from attempt to attempt; what an earlier one has learned counts until the new one has made enough steps.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=STEPS)
        self._slowest_ns = 0.0
        self._before_ns: float | None = None

    def add(self, duration_ns: int) -> None:
        self._recent.append(duration_ns)
        self._slowest_ns = max(duration_ns, self._slowest_ns * _FORGET)

    def new_attempt(self) -> None:
        self._before_ns = self._median_ns()
        self._recent.clear()

    def learned_s(self) -> float | None:
        """The median, or half of the slowest step when that is more; None while nothing is known.

        So three of it are never less than one and a half times a pause that the script has made before, as for an evaluation that
        nothing marks. The slowest counts less and less, so that one bad minute does not blind us for a day.
        """
        typical = self._median_ns()
        return None if typical is None else max(typical, self._slowest_ns / 2) / 1e9

    def _median_ns(self) -> float | None:
        return median(self._recent) if len(self._recent) >= _STEPS_MIN else self._before_ns


class Trouble(Enum):
    """Why a rank is told of."""

    SILENT = "makes no progress"
    STOPPED = "is stopped"
    BLOCKED = "waits in the kernel"
    TRACED = "is held by a debugger"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a rank at one time.

    now_ns, progress_ns: monotonic; the latter is its last sign of progress. state: letter as in proc(5). held: of its threads in state
    D, how often each has been taken off a processor: two looks with the same number saw one and the same wait.
    """

    now_ns: int
    progress_ns: int
    state: str
    cpu_ns: int
    held: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class RankWatch:
    """One rank of an attempt, as a sequence of looks."""

    _looks: deque[Look] = field(default_factory=lambda: deque(maxlen=_LOOKS))
    _state: str = ""
    _state_since_ns: int = 0
    _held: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: When it was last seen to have come back from what may take long, monotonic; 0: never.
    pause_end_ns: int = 0
    #: Since its last step it was seen at something that is no part of one.
    paused: bool = False
    _pause: Activity | None = None

    def saw(self, activity: Activity, now_ns: int) -> None:
        """What its stack tells now; UNKNOWN: that it is between two loops of steps."""
        if self._pause not in (None, activity):
            self.pause_end_ns = now_ns
        self._pause = activity if activity in _PAUSES else None
        self.paused |= activity in _NO_STEP

    def goes_on(self) -> None:
        """Whatever it was at is over, and its progress was seen by other means."""
        self._pause = None

    def take(self, look: Look) -> None:
        """The newest look."""
        before = self._held
        self._held = {}
        for thread, switches in look.held.items():
            seen = before.get(thread)
            self._held[thread] = seen if seen is not None and seen[0] == switches else (switches, look.now_ns)
        if look.state != self._state:
            self._state, self._state_since_ns = look.state, look.now_ns
        self._looks.append(look)

    @property
    def state(self) -> str:
        """Letter of the process; D only when some thread of it has been in one wait for two looks."""
        if self._blocked_since_ns() is not None:
            return "D"
        return "S" if self._state == "D" else self._state

    @property
    def state_since_ns(self) -> int:
        blocked_ns = self._blocked_since_ns()
        return self._state_since_ns if blocked_ns is None else blocked_ns

    def cpu_share(self) -> float | None:
        """CPU seconds a second of all its threads over the last second; None before that."""
        if len(self._looks) < _LOOKS:
            return None
        first, last = self._looks[0], self._looks[-1]
        return (last.cpu_ns - first.cpu_ns) / max(1, last.now_ns - first.now_ns)

    def sleeps(self) -> bool:
        """Whether its main thread was never seen running in the last second. A busy machine makes a share of CPU small, this not."""
        return len(self._looks) == _LOOKS and all(look.state != "R" for look in self._looks)

    def silent_s(self) -> float:
        """Since its last sign of progress."""
        return (self._looks[-1].now_ns - self._looks[-1].progress_ns) / 1e9

    def trouble(self, step_s: float | None, *, started: bool) -> Trouble | None:
        """What is wrong with it; None when nothing is.

        step_s: the learned time of a step, None when not known. started: it has made a step in this attempt.
        """
        twice = len(self._looks) > 1 and self._looks[-1].state == self._looks[-2].state
        if self._state == "T" and twice:
            return Trouble.STOPPED
        if self._state == "t" and twice:
            return Trouble.TRACED
        if self._blocked_since_ns() is not None:
            return Trouble.BLOCKED
        known = started and step_s is not None
        limit_s = max(SILENT_S_MIN, _SILENT_STEPS * step_s) if known and step_s is not None else _SILENT_UNKNOWN_S
        return Trouble.SILENT if self.silent_s() > limit_s else None

    def _blocked_since_ns(self) -> int | None:
        last = self._looks[-1]
        times = [since for _, since in self._held.values() if since < last.now_ns]
        return min(times, default=None)


def next_stack_s(silent_s: float) -> float:
    """When to take a rank's stack again, in seconds from now, when it has been silent for so long.

    A second at first, so that a verdict after three rests on what is so then; five seconds in the first minutes, a minute at last.
    """
    return min(max(1.0, silent_s / 4), 5.0) if silent_s < 120 else min(silent_s / 24, 60.0)
