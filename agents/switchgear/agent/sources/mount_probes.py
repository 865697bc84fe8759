"""Questions to file systems, some of which may never answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Threads that may hang in a question at the same time; with more servers gone than this the other mounts stay unknown.
THREADS_MAX = 8
#: A question that takes longer does not hold up the others: they get another thread.
PATIENCE_S = 0.05
#: Longest time that one round waits for its answers, below the deadline of a source.
ROUND_S = 0.3


@dataclass(frozen=True, slots=True)
class Answer:
    """stat: of statvfs, or None with the reason. waits_s: for how long an answer has been waited for; 0 when there is one."""

    stat: os.statvfs_result | None
    reason: str = ""
    waits_s: float = 0.0


class MountProbes:
    """Asks file systems for their size; normally one thread for a moment, and one more for each that hangs.

    A mount that hangs is not asked again before it has answered. statvfs: how one is asked; raises OSError.
    """

    def __init__(self, statvfs: Callable[[str], os.statvfs_result] = os.statvfs) -> None:
        self._statvfs = statvfs
        self._changed = threading.Condition()
        self._queue = list[str]()
        #: When each question that has no answer yet was asked.
        self._asked_s = dict[str, float]()
        self._answers = dict[str, Answer]()
        self._threads = 0

    def ask(self, mountpoints: Sequence[str], monotonic_s: Callable[[], float]) -> list[Answer]:
        """One answer for each, within ROUND_S. monotonic_s: the clock by which it is told how long one has been waited for."""
        with self._changed:
            self._answers.clear()
            now_s = monotonic_s()
            self._queue = [mountpoint for mountpoint in dict.fromkeys(mountpoints) if mountpoint not in self._asked_s]
            self._asked_s.update(dict.fromkeys(self._queue, now_s))
            self._wait(frozenset(self._queue))
            for mountpoint in self._queue:  # nobody was left to ask them
                del self._asked_s[mountpoint]
            self._queue.clear()
            now_s = monotonic_s()
            return [self._answer(mountpoint, now_s) for mountpoint in mountpoints]

    def _wait(self, asked: frozenset[str]) -> None:
        """Until all have answered or the round is over; whenever nothing moves, another thread takes the next question."""
        queued = -1
        for _ in range(int(ROUND_S / PATIENCE_S)):
            if asked <= self._answers.keys():
                return
            if self._queue and len(self._queue) in (queued, len(asked)) and self._threads < THREADS_MAX:
                self._threads += 1
                threading.Thread(target=self._run, name="mount-probe", daemon=True).start()
            queued = len(self._queue)
            self._changed.wait(PATIENCE_S)

    def _answer(self, mountpoint: str, now_s: float) -> Answer:
        answer = self._answers.get(mountpoint)
        if answer is not None:
            return answer
        asked_s = self._asked_s.get(mountpoint)
        if asked_s is None:
            return Answer(None, f"not asked: {THREADS_MAX} other file systems hang")
        return Answer(None, "statvfs does not return", now_s - asked_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._threads -= 1
                    return
                mountpoint = self._queue.pop(0)
            try:
                answer = Answer(self._statvfs(mountpoint))
            except OSError as error:
                answer = Answer(None, f"statvfs: {error.strerror}")
            except ValueError as error:  # a path that cannot be written in the encoding of this process
                answer = Answer(None, f"statvfs: {error}")
            with self._changed:
                del self._asked_s[mountpoint]
                self._answers[mountpoint] = answer
                if not self._queue:
                    self._changed.notify()
