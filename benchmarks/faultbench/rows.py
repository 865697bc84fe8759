"""The faults on one machine: what is done to a run, and what its processes and lines show."""

from __future__ import annotations

import math
import os
import re
import signal
import statistics
import time
from collections.abc import Mapping, Sequence

import psutil

from faultbench.contenders import Contender
from faultbench.measured import Bar, Measured, Row, at_most, each, share_of_torchrun
from faultbench.runs import NotInTimeError, Run, alive

#: Peers that see nothing are not waited for any longer.
BLIND_S = 20.0
#: torchrun's default is 0; three show what each of them does with a fault that comes back.
POISON_RESTARTS = 3
POISON_STEP = 12
#: A hang may be a slow step: so long it is waited for, and at least `PATIENCE_MIN_S`.
PATIENCE_STEPS = 3
PATIENCE_MIN_S = 3.0


def _after(run: Run, old: set[int], fault_ns: int, timeout_s: float | None = None) -> Measured:
    """First step after the fault, and what it cost in generations."""
    before = run.generations()
    first_ns = run.until_first_step_ns(old, *([timeout_s] if timeout_s else []))
    return Measured((first_ns - fault_ns) / 1e9, {"generations": run.generations() - before})


def kill(contender: Contender, ranks: int) -> Measured:
    with Run(contender, ranks) as run:
        run.until_steady()
        old, victim = run.pids(), run.lines()[-1][-1].pid
        fault_ns = time.time_ns()
        os.kill(victim, signal.SIGKILL)
        return _after(run, old, fault_ns)


def judge_kill(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:
    return (
        share_of_torchrun(medians, 1 / 5),
        each("one generation spent", rounds, "generations", 1),
    )


def exception(contender: Contender, ranks: int) -> Measured:
    with Run(contender, ranks) as run:
        run.until_steady()
        old = run.pids()
        run.ask("raise", ranks - 1)
        run.wait("the exception", lambda: run.fault_ns("raise"), BLIND_S)
        measured = _after(run, old, run.fault_ns("raise"))
        sentence = _said(run, rf"Rank {ranks - 1} .*ValueError: this was asked for: raise")
        return Measured(measured.seconds, {**measured.facts, "message": bool(sentence), "step": "step" in sentence})


def judge_exception(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:
    return (
        share_of_torchrun(medians, 1 / 4),
        each("message in the report", rounds, "message", True),
        each("step in the report", rounds, "step", True),
    )


def hang(contender: Contender, ranks: int) -> Measured:
    """Seconds until all ranks of the generation are gone, beyond the time that a slow step is given."""
    with Run(contender, ranks) as run:
        run.until_steady()
        old, step_s = run.pids(), run.step_s()
        processes = [psutil.Process(rank[-1].pid) for rank in run.lines()]
        run.ask("hang", ranks - 1)
        run.wait("the hang", lambda: run.fault_ns("hang"), BLIND_S)
        fault_ns = run.fault_ns("hang")
        patience_s = max(PATIENCE_MIN_S, PATIENCE_STEPS * step_s)
        try:
            run.wait("end of the ranks", lambda: not alive(processes), BLIND_S)
        except NotInTimeError:
            return Measured(math.inf)
        gone_s = (time.time_ns() - fault_ns) / 1e9
        after = _after(run, old, fault_ns, BLIND_S)
        culprit = _said(run, rf"Rank {ranks - 1} ")
        facts = {"named": bool(culprit), "stack": "stuck" in run.output(), "first_step_s": round(after.seconds, 2)}
        return Measured(gone_s - patience_s, {**facts, **after.facts})


def judge_hang(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:
    return (
        at_most("ranks gone after the patience", medians["switchgear"], 2.0),
        each("the right rank named", rounds, "named", True),
        each("its stack names the user's function", rounds, "stack", True),
    )


def stop(contender: Contender, ranks: int) -> Measured:
    with Run(contender, ranks) as run:
        run.until_steady()
        old = run.pids()
        processes = [psutil.Process(rank[-1].pid) for rank in run.lines()]
        fault_ns = time.time_ns()
        processes[-1].suspend()
        try:
            run.wait("sign that it was seen", lambda: len(alive(processes)) < ranks, BLIND_S)
        except NotInTimeError:
            return Measured(math.inf)
        seen_s = (time.time_ns() - fault_ns) / 1e9
        measured = _after(run, old, fault_ns, BLIND_S)
        return Measured(measured.seconds, {"seen_s": round(seen_s, 2), **measured.facts})


def judge_stop(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:
    seen = statistics.median(float(one.facts.get("seen_s", math.inf)) for one in rounds)
    return at_most("seen, so that its ranks end,", seen, 2.0), at_most("first step", medians["switchgear"], 4.0)


def poison(contender: Contender, ranks: int) -> Measured:
    with Run(contender, ranks, "--poison", str(POISON_STEP), restarts=POISON_RESTARTS) as run:
        run.wait("the exception", lambda: run.fault_ns("poison"))
        fault_ns = run.fault_ns("poison")
        deadline = time.monotonic() + 4 * BLIND_S
        while run.process.poll() is None and time.monotonic() < deadline:
            run.family()
            time.sleep(0.2)
        code = run.process.returncode
        seconds = math.inf if code is None else (time.time_ns() - fault_ns) / 1e9
        sentence = _said(run, rf"ValueError: poisoned batch in step {POISON_STEP} .*was stopped")
        facts = {"generations": run.generations(), "exit_code": "none" if code is None else code}
        return Measured(seconds, {**facts, "sentence": bool(sentence), "failed": bool(code)})


def judge_poison(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:  # noqa: ARG001
    return (
        each("stops after the second", rounds, "generations", 2),
        each("exit code ≠ 0", rounds, "failed", True),
        each("the user's exception in one sentence", rounds, "sentence", True),
    )


def launcher(contender: Contender, ranks: int) -> Measured:
    """The figure is the first step after the launcher was started again, a second after its death."""
    with Run(contender, ranks, "--workers", "1") as run:
        run.until_steady()
        family, old = run.family(), run.pids()
        workers = [process for process in family if process.ppid() in {rank[-1].pid for rank in run.lines()}]
        if len(workers) < ranks:
            raise NotInTimeError(f"expected a data-loader worker for each of {ranks} ranks, found {workers}")
        run.process.kill()
        run.process.wait()
        time.sleep(1.0)
        left = len(alive(family))
        started_ns = time.time_ns()
        run.start()
        measured = _after(run, old, started_ns)
        steps = max(line.step for rank in run.lines() for line in rank) + 5
        try:
            run.wait("more steps", lambda: run.lines()[0][-1].step >= steps, BLIND_S)
        except NotInTimeError:
            pass  # two generations that step on each other's checkpoint may not get there
        return Measured(measured.seconds, {"alive": left, **measured.facts, "overlap_s": round(run.overlap_s(old), 2)})


def judge_launcher(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:  # noqa: ARG001
    return (
        each("nothing alive 1 s after its death", rounds, "alive", 0),
        each("one generation more", rounds, "generations", 1),
        each("no overlap of generations", rounds, "overlap_s", 0.0),
    )


def _said(run: Run, pattern: str) -> str:
    """The first line of the launcher's own that fits; it may come moments after the first step."""
    try:
        run.wait("report", lambda: re.search(pattern, run.output()), 3.0)
    except NotInTimeError:
        pass
    found = re.search(f"^.*{pattern}.*$", run.output(), re.MULTILINE)
    return found[0] if found else ""


ROWS = (
    Row("kill", "SIGKILL of a rank", "to the first step", kill, judge_kill, None, (9, 20)),
    Row("exception", "Python exception, once", "to the first step", exception, judge_exception, None, (9, 20)),
    Row("hang", "hang in a step", "to the end of its ranks, beyond max(3 s, 3 steps)", hang, judge_hang, 1, (14, 32)),
    Row("stop", "SIGSTOP of a rank", "to the first step", stop, judge_stop, 1, (10, 32)),
    Row("poison", "the same step raises each time", "to the end of the job", poison, judge_poison, 1, (9, 50)),
    Row(
        "launcher", "SIGKILL of the launcher, started again", "to the first step", launcher, judge_launcher, 1, (16, 25)
    ),
)
