"""Which ranks are stuck and who is at fault, from what launchers say of ranks that make no step. Pure.

CPU time accuses nobody, since those that wait in a collective may spin (NCCL) or sleep (gloo); what computes is only given more time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from switchgear.recovery.diagnosis import Cause, at_step
from switchgear.recovery.doubt import hung_before
from switchgear.recovery.model import Activity, Failure, Fault, Hang, Now, ProcessState, Rank, RankWatch

#: A job hangs when none of its ranks has completed a step for so many learned step times, and for at least so long: pauses of the
#: machine (a garbage collection, a page cache that is written back) take a second or two.
HANG_STEPS = 3.0
HANG_S_MIN = 3.0
#: The same where it may as well be at work of its own between two steps (rollouts, samples, a table on rank 0): nobody waits in a
#: collective for those that could be stuck, or they compute.
BUSY_STEPS = 10.0
BUSY_S_MIN = 60.0
#: Each verdict that no new step has followed may have been wrong: the next one of the same hang takes so many times as long, up to so
#: long.
DOUBT_FACTOR = 10.0
DOUBT_S_MAX = 3600.0
#: Once an attempt has made its first step, the next one has so many times as long for it, at least and at most so long.
STARTUP_TIMES = 10.0
STARTUP_S_MIN = 60.0
#: Stopped by a signal for so long. Twice the interval of the reports: a rank that a debugger or a profiler holds is seen as TRACED.
STOPPED_S = 1.0
#: A process that waits in the kernel for so long makes its node unfit. Disks and network file systems answer within seconds, or fail
#: over within some tens; the kernel itself complains after 120 s (`hung_task_timeout_secs`).
BLOCKED_S = 30.0
#: What was said longer ago says nothing about now; launchers say it each half second.
HEARD_S_MAX = 3.0
#: A rank that burns this share of a CPU computes.
COMPUTES = 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a rank may be at something else than a step, and why so long."""

    activity: Activity
    seconds: float
    why: str


PATIENCE = (
    Patience(Activity.STARTUP, 1800, "setting up NCCL and compiling a large model take minutes, and no step says how long one takes"),
    Patience(Activity.COMPILE, 1800, "a graph that changed is compiled anew, which takes minutes for a large model"),
    Patience(Activity.CHECKPOINT, 1800, "some hundred gigabytes to a busy shared store"),
    Patience(Activity.EVALUATION, 86400, "a whole validation set, often with generation; all that a script does after its last step"),
    Patience(Activity.DATA, 600, "a cold or throttled store; as long as NCCL's own watchdog waits by default"),
    Patience(Activity.UNKNOWN, 600, "nothing says what it does; as long as NCCL's own watchdog waits by default"),
)  # fmt: skip
_PATIENCE_S = {patience.activity: patience.seconds for patience in PATIENCE}
STARTUP_S_MAX = _PATIENCE_S[Activity.STARTUP]
#: While other ranks have ended well: the last ones write results.
ENDING_S = _PATIENCE_S[Activity.EVALUATION]

_DOES = {
    Activity.UNKNOWN: "at something unknown",
    Activity.STARTUP: "before its first step",
    Activity.STEP: "in a step",
    Activity.COLLECTIVE: "waiting in a collective operation",
    Activity.CHECKPOINT: "at a checkpoint",
    Activity.EVALUATION: "at an evaluation",
    Activity.DATA: "waiting for its data loader",
    Activity.COMPILE: "compiling",
}
#: Ranks that get a line of evidence each; the others share one.
_TOLD_MAX = 8
#: Ranks at fault, and places in which others wait, that are remembered of a hang: a job's state is written often, with a hundred of them.
#: More tell no hang from another.
_REMEMBERED_MAX = 8


@dataclass(frozen=True, slots=True)
class Stall:
    """An attempt that will not go on by itself."""

    cause: Cause
    evidence: tuple[str, ...]
    #: Of the rank at fault, or of one of those that wait; empty when none was taken.
    stack: str = ""
    #: How long was waited, where the next verdict would take longer.
    doubted_s: float | None = None
    #: Of a hang.
    hang: Hang | None = None


def stall(
    ranks: Mapping[int, Rank],
    watches: Mapping[int, RankWatch],
    now: Now,
    *,
    hang_seconds: float | None = None,
    makes_steps: bool = True,
    resume_step: int | None = None,
    failures: Sequence[Failure] = (),
    first_step_s: float | None = None,
) -> Stall | None:
    """The verdict on an attempt; None while it goes on or may do so.

    hang_seconds: in place of the learned limit for steps and collectives; 0: nothing but stopped ranks counts.
    makes_steps: a step of this job was ever seen. Programs whose steps nobody sees would all look as if they never got to the first.
    resume_step: what the attempt began with; None: not known. failures: of the job while it has an incident, oldest first: those that hung
    may have been slow. first_step_s: see `startup_limit_s`.
    O(ranks + failures).
    """
    if not watches:
        return None
    live = [number for number, rank in ranks.items() if rank.exit is None]
    said = {
        number: watch
        for number in live
        if (watch := watches.get(number)) and now.monotonic_s - watch.heard_s <= HEARD_S_MAX
    }
    case = _Case(ranks, said, now)
    if stopped := [n for n in said if said[n].process is ProcessState.STOPPED and case.in_state_s(n) >= STOPPED_S]:
        return case.stopped(stopped)
    if hang_seconds == 0 or not makes_steps or not said or len(said) < len(live):
        return None
    if any(watch.process is ProcessState.TRACED for watch in said.values()):
        return None  # a person looks at it
    blocked = [n for n in said if said[n].process is ProcessState.DISK]
    hang = case.hang(resume_step)
    doubts = hung_before(failures, hang)
    startup_s = startup_limit_s(first_step_s, doubts)
    in_step_s, doubted_s = hang_seconds, None
    if in_step_s is None:
        in_step_s, doubted_s = case.step_limit_s(doubts, blocked, startup_s)
    limit_s = case.limit_s(in_step_s, startup_s)
    if case.idle_s() < limit_s:
        return None
    if blocked:
        # One node is accused by ranks elsewhere that are well. It may as well be the storage, which no other node cures.
        accused, well = ({ranks[n].node for n in numbers} for numbers in (blocked, said.keys() - set(blocked)))
        since_s = min(map(case.in_state_s, blocked))
        if len(accused) == 1 and well - accused:
            return case.blocked(blocked) if since_s >= BLOCKED_S else None
        if since_s < _PATIENCE_S[Activity.CHECKPOINT]:
            return None
    if limit_s == startup_s < STARTUP_S_MAX:
        doubted_s = startup_s
    elif limit_s != in_step_s:
        doubted_s = None
    return case.hung(doubted_s, hang)


def startup_limit_s(first_step_s: float | None, doubts: int) -> float:
    """How long an attempt may take to its first step.

    first_step_s: the longest that one of this job has taken; None: none has come so far. doubts: verdicts that may have been wrong; a
    checkpoint of some hundred gigabytes that is loaded may have been taken for a hang.
    """
    if first_step_s is None:
        return STARTUP_S_MAX
    return min(STARTUP_S_MAX, max(STARTUP_S_MIN, STARTUP_TIMES * first_step_s) * DOUBT_FACTOR**doubts)


@dataclass(frozen=True, slots=True)
class _Case:
    ranks: Mapping[int, Rank]
    said: Mapping[int, RankWatch]
    now: Now

    def _aged_s(self, age_s: float, watch: RankWatch) -> float:
        return age_s + self.now.monotonic_s - watch.heard_s

    def in_state_s(self, number: int) -> float:
        return self._aged_s(self.said[number].process_age_s, self.said[number])

    def idle_s(self) -> float:
        """Since any rank of the job made progress."""
        return min(self._aged_s(watch.idle_s, watch) for watch in self.said.values())

    def _step_s(self) -> float | None:
        return max((watch.step_s for watch in self.said.values() if watch.step_s), default=None)

    def hang(self, resume_step: int | None) -> Hang:
        """What is known of it, if it is one."""
        stood = [self._stood(number) for number in self.ranks]
        steps, counts = [step for step, _ in stood if step is not None], [count for _, count in stood if count]
        made_steps = bool(counts) or any(rank.first_step_ns for rank in self.ranks.values())
        common = min(steps) if len(steps) == len(stood) else None
        ranks, _ = self._culprits()
        places = {watch.where for watch in self.said.values() if watch.activity is Activity.COLLECTIVE}
        known = "" not in places and len(places) <= _REMEMBERED_MAX
        return Hang(
            common if made_steps else resume_step,
            min(counts, default=0),
            made_steps,
            tuple(ranks) if len(ranks) <= _REMEMBERED_MAX else (),
            tuple(sorted(places)) if known else (),
        )

    def _stood(self, number: int) -> tuple[int | None, int]:
        """Newest step of a rank, and how many it has made.

        What was told of progress is not told again to a recovery that was started anew, which may have stored less; watches tell the count.
        """
        rank, watch = self.ranks[number], self.said.get(number)
        missed = max(0, watch.count - rank.count) if watch else 0
        return None if rank.step is None else rank.step + missed, rank.count + missed

    def step_limit_s(self, doubts: int, blocked: Sequence[int], startup_s: float) -> tuple[float, float | None]:
        """How long a step may take, and the same again where the next verdict would take longer."""
        step_s = self._step_s()
        if step_s is None:
            return startup_s, None
        base_s = max(HANG_S_MIN, HANG_STEPS * step_s)
        if not self._missed(blocked):
            base_s = max(BUSY_S_MIN, BUSY_STEPS * step_s)
        limit_s = max(base_s, min(DOUBT_S_MAX, base_s * DOUBT_FACTOR**doubts))
        return limit_s, limit_s if limit_s < DOUBT_S_MAX else None

    def _missed(self, blocked: Sequence[int]) -> bool:
        """Whether ranks wait in a collective for others that do nothing."""
        outside = [n for n in self.said if self.said[n].activity is not Activity.COLLECTIVE and n not in blocked]
        shares = [self.said[number].cpu_share for number in outside]
        waits = len(outside) + len(blocked) < len(self.said) and len(self.ranks) > 1
        return waits and all(share is not None and share < COMPUTES for share in shares)

    def limit_s(self, in_step_s: float, startup_s: float) -> float:
        """As patient as with the rank that may take longest."""
        limits_s = [in_step_s]
        for watch in self.said.values():
            # Nobody can ask a process in the kernel what it does.
            in_kernel = watch.activity is Activity.UNKNOWN and watch.process is ProcessState.DISK
            patience_s = startup_s if watch.activity is Activity.STARTUP else _PATIENCE_S.get(watch.activity)
            limits_s.append(in_step_s if in_kernel or patience_s is None else patience_s)
        if len(self.said) < len(self.ranks):
            limits_s.append(ENDING_S)
        return max(limits_s)

    # Verdicts.

    def stopped(self, culprits: Sequence[int]) -> Stall:
        clause = f"{self._names(culprits)} {_was(culprits)} stopped by SIGSTOP{self._at(culprits[0])}"
        since_s = max(map(self.in_state_s, culprits))
        known_by = f"state T in /proc for {since_s:.1f} s"
        return self._stall(culprits, since_s, Fault.RANK_STOPPED, (clause, known_by, "stopped"))

    def blocked(self, culprits: Sequence[int]) -> Stall:
        since_s = max(map(self.in_state_s, culprits))
        clause = f"{self._names(culprits)} {_is(culprits)} blocked in the kernel{self._at(culprits[0])}"
        known_by = f"state D in /proc for {since_s:.1f} s, in which no signal reaches a process"
        return self._stall(culprits, self.idle_s(), Fault.RANK_BLOCKED, (clause, known_by, "blocked"))

    def hung(self, doubted_s: float | None, hang: Hang) -> Stall:
        culprits, why = self._culprits()
        step_s = self._step_s()
        places = [self.said[number].where for number in culprits or self.said]
        alike = bool(culprits) or len(set(places)) == 1
        where = next((f" in {place}" for place in places if place and alike), "")
        learned = "" if step_s is None else f" where one takes {step_s:.2g} s"
        known_by = f"no rank completed a step for {self.idle_s():.1f} s{learned}; {why}"
        first = culprits[0] if culprits else min(self.said)
        who = self._names(culprits) if culprits else "all ranks"
        clause = f"{who} hung{self._at(first)}{where}"
        signature = f"hung: {', '.join(map(str, culprits)) or 'all'}"
        found = self._stall(culprits, self.idle_s(), Fault.RANK_HUNG, (clause, known_by, signature))
        return replace(found, doubted_s=doubted_s, hang=hang)

    def _culprits(self) -> tuple[list[int], str]:
        """Who keeps the others waiting, and how we know; nobody when nothing tells the ranks apart."""
        said = self.said
        outside = [number for number, watch in said.items() if watch.activity is not Activity.COLLECTIVE]
        if outside and len(outside) < len(said):
            computes = any((said[n].cpu_share or 0.0) >= COMPUTES for n in outside)
            return outside, f"the others wait for {'it' if len(outside) == 1 else 'them'} in a collective operation" + (
                ", it is computing" if computes else ""
            )
        behind = min(watch.count for watch in said.values())
        late = [number for number, watch in said.items() if watch.count == behind]
        if len(late) < len(said):
            return late, f"steps of this attempt: {behind}, of others more"
        if len(said) == 1:
            return late, f"it is {_DOES[said[late[0]].activity]}"
        return [], "all wait in a collective operation" if not outside else "nothing tells the ranks apart"

    # Words.

    def _stall(
        self,
        culprits: Sequence[int],
        since_s: float,
        fault: Fault,
        words: tuple[str, str, str],
    ) -> Stall:
        """words: clause, known_by and signature of the cause."""
        rank = culprits[0] if culprits else None
        node = "" if rank is None else self.ranks[rank].node
        time_ns = self.now.unix_ns - round(since_s * 1e9)
        cause = Cause(fault, *words, node, rank, time_ns)
        order = [*culprits, *(number for number in self.said if number not in culprits)]
        stack = next((self.said[number].stack for number in order if self.said[number].stack), "")
        told = [self._line(number) for number in order[:_TOLD_MAX]]
        if more := len(order) - len(told):
            told.append(f"{more} more ranks make no step either")
        return Stall(cause, tuple(told), stack)

    def _line(self, number: int) -> str:
        rank, watch = self.ranks[number], self.said[number]
        idle_s = self._aged_s(watch.idle_s, watch)
        cpu = "" if watch.cpu_share is None else f", CPU {watch.cpu_share:.0%}"
        where = f", at {watch.where}" if watch.where else ""
        return (
            f"launcher on {rank.node}: rank {number} (pid {rank.pid}) is {_DOES[watch.activity]}, process "
            f"{watch.process.value}{cpu}, no progress for {idle_s:.1f} s after {watch.count} steps of this attempt{where}"
        )

    def _names(self, numbers: Sequence[int]) -> str:
        if len(numbers) == 1:
            return f"rank {numbers[0]} on {self.ranks[numbers[0]].node}"
        listed = ", ".join(map(str, numbers[:_TOLD_MAX])) + (", …" if len(numbers) > _TOLD_MAX else "")
        nodes = sorted({self.ranks[number].node for number in numbers})
        return f"ranks {listed} on {', '.join(nodes[:_TOLD_MAX])}"

    def _at(self, number: int) -> str:
        return at_step(*self._stood(number), made_steps=bool(self.ranks[number].first_step_ns))


def _was(numbers: Sequence[int]) -> str:
    return "was" if len(numbers) == 1 else "were"


def _is(numbers: Sequence[int]) -> str:
    return "is" if len(numbers) == 1 else "are"
