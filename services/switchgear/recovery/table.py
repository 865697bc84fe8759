"""The decision table: what is done about which fault. The first row that fits counts; `policy` says when a row fits.

Scope: what the evidence accuses. A rank is replaced by a restart in place: all ranks are forked anew within a second, so there is
nothing to gain from keeping those that are well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from switchgear.recovery.kinds import Decision, Fault

#: Attempts in a row that may fail without one new step, whatever the cause. Three, as in NVRx' progress tracker
#: (`max_no_progress_cycles`): the third proves that a restart does not help.
NO_PROGRESS_MAX = 3
#: Faults within `OFTEN_S` that end a job although it makes progress in between: one each six seconds is no training any more.
OFTEN_MAX = 100
OFTEN_S = 600.0
#: Faults of one kind within an hour that make a node suspect, when no other node of the job has had one. By chance alone five of five
#: are on a certain one of two nodes in 1 of 32 cases.
LEMON_FAULTS = 5
LEMON_S = 3600.0

#: Faults that are not the job's own: they do not use up its restarts.
INFRASTRUCTURE = frozenset(
    {
        Fault.RANK_KILLED,
        Fault.GPU_LOST,
        Fault.NODE_FAULT,
        Fault.NODE_LOST,
        Fault.LAUNCHER_LOST,
        Fault.RANK_STOPPED,
        Fault.RANK_BLOCKED,
        Fault.RANK_HUNG,
    }
)
OWN = frozenset(Fault) - INFRASTRUCTURE
#: What is known of a machine explains what its ranks, and their peers, only suffered.
OF_A_NODE = frozenset({Fault.GPU_LOST, Fault.NODE_FAULT, Fault.NODE_LOST, Fault.RANK_BLOCKED})
EVERY = frozenset(Fault)


class Scope(StrEnum):
    JOB = "job"
    RANK = "rank"
    NODE = "node"


class When(StrEnum):
    """What must hold beside the class of the fault, as the documentation says it."""

    ALWAYS = "in all other cases"
    REPLICA = "it is a replica of an inference service"
    PERMANENT = "it cannot start like this (script or interpreter missing)"
    SWITCHED_OFF = "`--max-restarts 0`"
    SAME_CHECKPOINT = "the second time before the first step from the same checkpoint, and an older one is known"
    SAME_ERROR = "the same text after the same step as last time, without a new step in between"
    NO_PROGRESS = "three attempts in a row made no new step; hangs alone only once no longer limit is left to try"
    TOO_OFTEN = "100 faults within 10 minutes"
    NO_OTHER_NODE = "the node cannot be used, and there is no other (`--standalone`)"
    UNFIT_NODE = (
        "fatal signal of a node of the placement, its launcher silent for longer than its lease and margin, or lost for certain, a rank "
        "in state D for 30 s, or its processes alive 60 s after SIGKILL"
    )
    SAME_RANK_HUNG = "the same rank hung after the same step as last time, although it was waited for longer"
    LEMON = "the fifth of its kind on this node within an hour, and none on the job's other nodes"
    NO_SPARE = "a node is to be replaced, no other is free, and `--nnodes MIN:MAX` allows what is left"
    BUDGET_USED = "`--max-restarts` are used; one is given back for each hour of progress"


@dataclass(frozen=True, slots=True)
class Row:
    faults: frozenset[Fault]
    scope: Scope
    when: When
    decision: Decision
    source: str


TABLE = (
    Row(EVERY, Scope.JOB, When.REPLICA, Decision.REPLACE_REPLICA, "ours: the autoscaler starts another"),
    Row(EVERY, Scope.JOB, When.PERMANENT, Decision.STOP, "ours: no restart changes it"),
    Row(EVERY, Scope.JOB, When.SWITCHED_OFF, Decision.STOP, "torchrun's flag"),
    Row(frozenset({Fault.RANK_CRASHED, Fault.RANK_HUNG}), Scope.JOB, When.SAME_CHECKPOINT, Decision.ROLL_BACK, "Megatron-LM#5281: a checkpoint that loads and is bad, tried 44 times"),
    Row(OWN, Scope.JOB, When.SAME_ERROR, Decision.STOP, "measured: torchrun, ft_launcher and dlrover burn 4 generations on it"),
    Row(EVERY, Scope.JOB, When.NO_PROGRESS, Decision.STOP, "nvidia-resiliency-ext, `max_no_progress_cycles`"),
    Row(EVERY, Scope.JOB, When.TOO_OFTEN, Decision.STOP, "ours: nothing may loop for ever"),
    Row(EVERY, Scope.NODE, When.NO_OTHER_NODE, Decision.STOP, "torch, `TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT`"),
    Row(EVERY, Scope.NODE, When.UNFIT_NODE, Decision.REPLACE_NODE, "ByteRobust (arXiv 2509.16293): high-confidence machine events evict at once; XID catalog of NVIDIA"),
    Row(frozenset({Fault.RANK_HUNG}), Scope.NODE, When.SAME_RANK_HUNG, Decision.REPLACE_NODE, "ByteRobust: restart, then evict the outlier; Ray Train #64993: a hang that is only retried hangs again"),
    Row(frozenset({Fault.RANK_KILLED, Fault.RANK_STOPPED, Fault.RANK_HUNG, Fault.LAUNCHER_LOST}), Scope.NODE, When.LEMON, Decision.REPLACE_NODE, "Meta RSC (arXiv 2410.21680): lemon nodes"),
    Row(INFRASTRUCTURE, Scope.RANK, When.ALWAYS, Decision.RESTART_IN_PLACE, "measured: 0.2 s by fork beside 2.9 s of torchrun; free of charge"),
    Row(OWN, Scope.JOB, When.BUDGET_USED, Decision.STOP, "torchrun's flag; that it refills is ours"),
    Row(OWN, Scope.RANK, When.ALWAYS, Decision.RESTART_IN_PLACE, "torchrun"),
)  # fmt: skip

#: What becomes of a replacement when the scheduler has none.
NO_SPARE = Row(EVERY, Scope.NODE, When.NO_SPARE, Decision.SHRINK, "torchrun, `--nnodes MIN:MAX`")
