"""When a run that Slurm will end should stop by itself: after the last checkpoint that fits before the end. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: What is kept back for the stop itself: words of the launchers, and the end of srun and of the batch script.
RESERVE_S = 10.0
#: A checkpoint takes as long as the slowest of so many, and a tenth more.
INTERVALS_MAX = 5
_SLACK = 1.1


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast checkpoints come, the time to write them included. Times are monotonic seconds.

    since_s: of the last checkpoint, or of the start of the attempt when it has none yet. noticed_s: when somebody said that the end is
    near (SIGUSR1); None: nobody has.
    """

    since_s: float
    intervals_s: tuple[float, ...] = ()
    noticed_s: float | None = None

    def began(self, now_s: float) -> Pace:
        """A new attempt: what it takes to its first checkpoint says nothing about the last of the one before."""
        return replace(self, since_s=now_s)

    def committed(self, now_s: float) -> Pace:
        return replace(self, since_s=now_s, intervals_s=(*self.intervals_s, now_s - self.since_s)[-INTERVALS_MAX:])

    @property
    def next_s(self) -> float | None:
        """When the next checkpoint will be there; None: there has been none to go by."""
        return self.since_s + _SLACK * max(self.intervals_s) if self.intervals_s else None


def stop_reason(pace: Pace, now_s: float, end_s: float, *, grace_s: float) -> str:
    """Why the run should stop now, as a clause; empty: it should go on.

    end_s: when Slurm ends the job; infinite: it does not, as far as is known. grace_s: what ranks get to end by themselves, and to write a checkpoint on SIGTERM if they can.
    """
    left_s = end_s - now_s
    if left_s <= grace_s + RESERVE_S:
        return f"the time limit is over in {max(0.0, left_s):.0f} s"
    if pace.noticed_s is not None and pace.intervals_s and pace.since_s >= pace.noticed_s:
        return "SIGUSR1 has announced the end, and a checkpoint has been written since"
    # One that is late already may come at any moment: it is waited for.
    if pace.next_s is not None and now_s < pace.next_s and pace.next_s > end_s - RESERVE_S:
        return f"the time limit is over in {left_s:.0f} s, before the next checkpoint"
    return ""
