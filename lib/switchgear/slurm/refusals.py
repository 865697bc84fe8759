"""Which of our errors a complaint of Slurm is. It has no codes on its command line, so its words decide (slurm_errno.c of all versions)."""

from __future__ import annotations

import re

from switchgear.core.errors import FailedPrecondition, Invalid, PermissionDenied, Reason, SwitchgearError, Unavailable

_MUNGE = re.compile(
    r"munge|authentication credential|protocol authentication error|unable to (?:create|verify) .*credential",
    re.IGNORECASE,
)
#: Nothing has left this machine.
_NOT_SENT = re.compile(
    r"connect failure|connection refused|unable to (?:resolve|determine|establish)|no such file", re.IGNORECASE
)
_AWAY = re.compile(
    r"unable to contact|communication|timed out|zero bytes|connection (?:refused|reset|closed)|not responding|unexpected message received|"
    r"unable to (?:resolve|determine|establish|connect)|in standby mode|temporarily unable|resource temporarily unavailable|"
    r"slurm_load_|config is unable to load|^unspecified error|no such file or directory|could not establish a configuration source",
    re.IGNORECASE | re.MULTILINE,
)
_FORBIDDEN = re.compile(
    r"permission denied|access denied|not permitted|invalid user id|not authorized|authentication (?:failure|failed)",
    re.IGNORECASE,
)
_WRONG = (
    (re.compile(r"invalid partition|partition specified|not in this partition", re.IGNORECASE), "`sinfo --summarize` lists the partitions"),
    (re.compile(r"invalid node name|node .*not found|unable to find node", re.IGNORECASE), "`sinfo --Node` lists the nodes"),
    (re.compile(r"invalid account", re.IGNORECASE), "`sacctmgr show associations user=$USER` lists the accounts"),
    (re.compile(r"invalid qos", re.IGNORECASE), "`sacctmgr show qos` lists them"),
    (re.compile(r"invalid job id|job .*not found", re.IGNORECASE), "Slurm forgets a job some minutes after its end; `squeue` lists the others"),
    (
        re.compile(r"node configuration is not available|node count specification|too many gpus|invalid generic resource", re.IGNORECASE),
        "no node can ever give this many GPUs, CPUs or this much memory; `scontrol show node` says what each has",
    ),
    (re.compile(r"does not look like a batch script", re.IGNORECASE), "let it begin with #! and an interpreter"),
    (re.compile(r"dependency problem", re.IGNORECASE), "write it as sbatch(1) says, for example singleton or afterany:JOBID"),
    (re.compile(r"invalid (?:dependency|job array|time limit|feature|reservation|wckey|license)", re.IGNORECASE), "correct it"),
)  # fmt: skip


def error(what: str, words: str) -> SwitchgearError:
    """The error of ours for what Slurm said. what: what was asked, for the message, for example `sbatch`."""
    said = " ".join(words.split())[:500] or "nothing"
    text = f"{what}: Slurm says: {said}"
    if _MUNGE.search(words):
        remedy = "look whether munged runs here and has the key and the clock of the controller (`munge -n | unmunge`)"
        return Unavailable(f"{text}; {remedy}", Reason.SLURM_UNREACHABLE, said=said)
    if _FORBIDDEN.search(words):
        remedy = "ask as a user who may: the job's own, root, or one with AdminLevel Operator in Slurm"
        return PermissionDenied(f"{text}; {remedy}", Reason.SLURM_REFUSED, said=said)
    for pattern, remedy in _WRONG:
        if pattern.search(words):
            return Invalid(f"{text}; {remedy}", Reason.SLURM_REFUSED, said=said)
    if _AWAY.search(words):
        remedy = "look whether slurmctld runs and SLURM_CONF names its slurm.conf (`scontrol ping`)"
        return Unavailable(f"{text}; {remedy}", Reason.SLURM_UNREACHABLE, said=said)
    return FailedPrecondition(
        f"{text}; change what it names, or ask the cluster's operator", Reason.SLURM_REFUSED, said=said
    )


def of_submission(refused: SwitchgearError) -> SwitchgearError:
    """The same error when it is certain that no job came of it, else one that says that nobody knows."""
    if refused.reason != Reason.SLURM_UNREACHABLE or _NOT_SENT.search(refused.metadata.get("said", "")):
        return refused
    return unknown(refused.message)


def unknown(why: str) -> Unavailable:
    """Nobody knows whether the job was submitted."""
    return Unavailable(
        f"{why}; the job may have been submitted all the same: look for its comment in squeue before it is submitted again",
        Reason.SLURM_OUTCOME_UNKNOWN,
    )
