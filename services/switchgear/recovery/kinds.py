"""The words of recovery's state machines: phases, faults, decisions and the states of its records."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a job stands between two attempts or in one."""

    WAITING = "WAITING"  # for the launchers of its placement
    CHECKING = "CHECKING"  # a launcher looks for the newest verified checkpoint
    STARTING = "STARTING"  # attempt commanded, first step not yet made on all ranks
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"  # until every process of the attempt is gone
    REPLACING = "REPLACING"  # until the scheduler has placed it anew
    ENDED = "ENDED"


class Fault(StrEnum):
    """Classes of faults that the policy tells apart."""

    RANK_KILLED = "RANK_KILLED"  # ended by a signal from outside
    RANK_CRASHED = "RANK_CRASHED"  # ended by a signal that its own code raised (SIGSEGV, SIGABRT, …)
    RANK_EXCEPTION = "RANK_EXCEPTION"
    RANK_EXITED = "RANK_EXITED"  # exit code other than 0 without a Python exception
    GPU_LOST = "GPU_LOST"
    NODE_FAULT = "NODE_FAULT"  # any other fatal signal of a node
    NODE_LOST = "NODE_LOST"  # its launcher was silent for longer than its lease
    LAUNCHER_LOST = "LAUNCHER_LOST"  # it came back without its ranks, or lost the process that forks them
    START_FAILED = "START_FAILED"
    RANK_STOPPED = "RANK_STOPPED"  # by SIGSTOP
    RANK_BLOCKED = "RANK_BLOCKED"  # waits in the kernel, where no signal reaches it
    RANK_HUNG = "RANK_HUNG"  # alive, and no rank of the job makes a step


class Decision(StrEnum):
    """What the policy can answer."""

    RESTART_IN_PLACE = "RESTART_IN_PLACE"
    REPLACE_NODE = "REPLACE_NODE"
    ROLL_BACK = "ROLL_BACK"  # in place, from one checkpoint further back
    SHRINK = "SHRINK"  # without the node, and with fewer than were asked for
    REPLACE_REPLICA = "REPLACE_REPLICA"  # the job ends, and the autoscaler starts another
    STOP = "STOP"


class ProcessState(StrEnum):
    """State of a rank's process, as Linux has it."""

    UNKNOWN = "UNKNOWN"
    RUNNING = "RUNNING"
    SLEEPING = "SLEEPING"
    DISK = "DISK"  # uninterruptible
    STOPPED = "STOPPED"
    TRACED = "TRACED"  # by a debugger
    ZOMBIE = "ZOMBIE"


class Activity(StrEnum):
    """What a rank that makes no step is at."""

    UNKNOWN = "UNKNOWN"
    STARTUP = "STARTUP"  # before the first step of the generation
    STEP = "STEP"
    COLLECTIVE = "COLLECTIVE"  # waits for other ranks
    CHECKPOINT = "CHECKPOINT"
    EVALUATION = "EVALUATION"
    DATA = "DATA"
    COMPILE = "COMPILE"


class IncidentState(StrEnum):
    OPEN = "OPEN"
    ACTING = "ACTING"
    VERIFYING = "VERIFYING"
    RESOLVED = "RESOLVED"
    ESCALATED = "ESCALATED"


class AttemptState(StrEnum):
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class CheckpointState(StrEnum):
    COMMITTED = "COMMITTED"
    VERIFIED = "VERIFIED"
    CORRUPT = "CORRUPT"
    EXPIRED = "EXPIRED"


class JobOutcome(StrEnum):
    """States that recovery moves a job to; the names are those of `Job.State`."""

    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
