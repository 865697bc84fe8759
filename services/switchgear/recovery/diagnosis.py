"""Who failed and how we know: from the exits of an attempt's ranks to one cause in plain words."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from switchgear.core.modes import Mode
from switchgear.recovery.model import Decision, Exit, Fault, Incident, IncidentState, Rank

#: What a rank says when a *peer* went away; such a rank is a witness, not the culprit (gloo, NCCL, the TCP store).
_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
    "DistNetworkError",
    "DistStoreError",
    "Socket Timeout",
    "NCCL communicator was aborted",
)
#: What a launcher says of ranks whose own end nobody has seen.
_LOST = "switchgear: "
#: Signals that a program's own fault raises (signal(7), "Action: Core").
_OWN_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
)


@dataclass(frozen=True, slots=True)
class Cause:
    """The class of the fault, who it hit, and the same as a clause that a sentence begins with."""

    fault: Fault
    clause: str
    #: How it is known, as a clause in brackets.
    known_by: str
    signature: str
    node: str = ""
    rank: int | None = None
    time_ns: int = 0


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def root_exit(exits: Iterable[Exit]) -> Exit | None:
    """The exit that explains the others: the earliest that we did not cause and that does not blame a peer.

    A rank that only reports a lost peer is chosen when there is nobody else to blame. None when all ended well or were
    stopped by us.
    """
    failed = sorted((e for e in exits if e.code != 0 and not e.by_us), key=lambda e: e.time_ns)
    return next((e for e in failed if not blames_peer(e)), failed[0] if failed else None)


def blames_peer(rank_exit: Exit) -> bool:
    """It saw a peer go away."""
    return bool(rank_exit.exception) and any(phrase in rank_exit.exception for phrase in _PEER_LOST)


def root_cause(ranks: Mapping[int, Rank], *, inference: bool = False) -> tuple[Cause, str] | None:
    """What ended an attempt, and the evidence for it, once nothing of it is alive; None when nobody can be blamed.

    Ranks that only report a lost peer point at those that vanished without an exit, if there are any.
    """
    root = root_exit(rank.exit for rank in ranks.values() if rank.exit)
    vanished = next((rank.node for rank in ranks.values() if rank.started_ns and rank.exit is None), "")
    if vanished and (root is None or blames_peer(root)):
        clause = f"the launcher on {vanished} ended and took its ranks with it"
        cause = Cause(Fault.LAUNCHER_LOST, clause, "its ranks left no exit", "launcher lost", vanished)
        return cause, f"the ranks on {vanished} are gone without an exit"
    return (cause_of_exit(root, inference=inference), evidence_of_exit(root)) if root else None


def cause_of_exit(rank_exit: Exit, *, inference: bool = False) -> Cause:
    """What the exit of the rank at fault says. inference: it makes no steps."""
    subject = f"rank {rank_exit.rank} on {rank_exit.node}"
    at = "" if inference else at_step(rank_exit.step, rank_exit.count, made_steps=rank_exit.made_steps)
    if rank_exit.code < 0 and rank_exit.exception.startswith(_LOST):
        clause = f"the ranks on {rank_exit.node} were lost with the process that forks them{at}"
        known_by = shorten(rank_exit.exception.removeprefix(_LOST))
        return Cause(Fault.LAUNCHER_LOST, clause, known_by, "launcher lost", rank_exit.node, time_ns=rank_exit.time_ns)
    if rank_exit.code < 0:
        name = signal_name(-rank_exit.code)
        own = -rank_exit.code in _OWN_SIGNALS
        fault = Fault.RANK_CRASHED if own else Fault.RANK_KILLED
        clause = f"{subject} {'crashed with' if own else 'was killed by'} {name}{at}"
        signature = name
    elif rank_exit.exception:
        # Addresses differ from run to run and say nothing about the error.
        fault, signature = Fault.RANK_EXCEPTION, re.sub(r"0x[0-9a-f]+", "0x…", rank_exit.exception)
        clause = f"{subject} raised {shorten(rank_exit.exception)}{at}"
    else:
        fault, signature = Fault.RANK_EXITED, f"exit code {rank_exit.code}"
        clause = f"{subject} ended with exit code {rank_exit.code}{at}"
    known_by = f"its launcher saw process {rank_exit.pid} end"
    return Cause(fault, clause, known_by, signature, rank_exit.node, rank_exit.rank, rank_exit.time_ns)


def at_step(step: int | None, count: int, *, made_steps: bool) -> str:
    """When something happened to a rank, as the end of a clause.

    step: the newest that it had completed; None: not known by number. count: how many it had completed in its attempt.
    """
    if step is not None:
        return f" after step {step}"
    if count:
        return f" after {count} step{'' if count == 1 else 's'} of this attempt"
    return " at a step that is not known" if made_steps else " before its first step"


def evidence_of_exit(rank_exit: Exit) -> str:
    """One line on how an exit is known."""
    how = signal_name(-rank_exit.code) if rank_exit.code < 0 else f"exit code {rank_exit.code}"
    text = f"launcher on {rank_exit.node}: rank {rank_exit.rank} (pid {rank_exit.pid}) ended with {how}"
    last = rank_exit.exception or next(
        (line for line in reversed(rank_exit.stderr_tail.splitlines()) if line.strip()), ""
    )
    return f"{text}: {shorten(last, 300)}" if last else text


def shorten(text: str, length_max: int = 160) -> str:
    """The first line of `text`, cut to `length_max` characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


#: What to do about a hang that was none.
_MEANT = " If the pause was meant, allow it with `--hang-timeout` or put it into `switchgear.train.progress.phase`."


def summarize(incident: Incident) -> str:
    """The incident in one sentence: who failed at which step, how we know, what was done, what it cost; of a hang also what to do if
    it was none."""
    return _told(incident) + (_MEANT if incident.fault is Fault.RANK_HUNG else "")


def _told(incident: Incident) -> str:
    clause = incident.cause[:1].upper() + incident.cause[1:]
    if incident.known_by:
        clause += f" ({incident.known_by})"
    if incident.decision is Decision.STOP:
        return f"{clause}; the job was stopped: {incident.decision_reason}."
    if incident.decision is Decision.REPLACE_REPLICA or incident.state is IncidentState.ESCALATED:
        return f"{clause}; {incident.decision_reason}."
    if incident.decision is None and incident.state is IncidentState.RESOLVED:
        return f"{clause}; the job ended well all the same."
    if incident.decision is None:
        return f"{clause}; the attempt is being stopped."
    parts = [clause]
    if incident.quarantined:
        count = len(incident.quarantined)
        parts.append(f"{count} damaged checkpoint{'s were' if count > 1 else ' was'} put into quarantine")
    if incident.decision is Decision.RESTART_IN_PLACE:
        where = "in place"
    elif incident.decision is Decision.ROLL_BACK:
        where = "in place, one checkpoint further back,"
    elif incident.node_again:
        where = f"on {incident.node} again, which is back,"
    elif incident.decision is Decision.SHRINK:
        where = f"without {incident.node} and with fewer nodes,"
    else:
        where = f"without {incident.node}"
    if incident.new_generation:
        if incident.resume_step is None:
            start = "where the script resumes by itself (a step that is not known)"
        else:
            start = f"the verified checkpoint of step {incident.resume_step}" if incident.resume_step else "the start"
        parts.append(f"the job was restarted {where} from {start}")
    else:
        parts.append(f"the job is being restarted {where.rstrip(',')}")
    cost = _cost(incident)
    return "; ".join([*parts, cost] if cost else parts) + "."


def withheld(incident: Incident, mode: Mode) -> str:
    """The decision's reason when the policy may not carry it out, as a clause; the job ends, since nobody else would restart it."""
    remedy = "allow it with `switchgear policies recovery.restart --set act` and submit the job again"
    if mode is Mode.OBSERVE:
        return f"the job was stopped, since policy recovery.restart may not restart it (mode OBSERVE); {remedy}"
    how = "a restart on other nodes" if incident.decision is Decision.REPLACE_NODE else "a restart in place"
    return f"{how} is advised ({incident.decision_reason}) and was not done, since policy recovery.restart only advises; {remedy}"


def _cost(incident: Incident) -> str:
    times = incident.timeline
    if "first_new_step" not in times or "detected" not in times:
        return ""
    seconds = (times["first_new_step"] - times.get("fault", times["detected"])) / 1e9
    redone = incident.steps_redone
    steps = "" if redone is None else f" and {redone} step{'' if redone == 1 else 's'} made again"
    return f"it cost {seconds:.1f} s until the first new step{steps}"
