"""What Slurm says of a job in variables: in its processes' environment, and to a prolog. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from switchgear.core.errors import Invalid
from switchgear.slurm import hostlist

_NUMBER = re.compile(r"[0-9]{1,20}")
_WORD = re.compile(r"[!-~]{1,128}")
#: Slurm allows as many components of a heterogeneous job.
_COMPONENTS_MAX = 128
#: Of all components: more than the largest clusters have, and a user who writes more into an environment costs us no more than this.
_NODES_MAX = 50_000
#: Slurm's largest array has fewer.
_TASKS_MAX = 1 << 32


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """Whose a job is, as far as it is known; "" and None where it is not.

    array_job, array_task: of a member of an array. het_job: of a component of a heterogeneous job, the id of the whole; het_offset: which
    component it is.
    """

    user: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    array_job: str = ""
    array_task: int | None = None
    het_job: str = ""
    het_offset: int | None = None

    def or_else(self, other: SlurmJob) -> SlurmJob:
        """This one, with what the other knows where this one does not."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return SlurmJob(*(other_says if own in ("", None) else own for own, other_says in pairs))


#: Nothing is known.
UNKNOWN = SlurmJob()


def job_id(variables: Mapping[str, str]) -> str:
    """The id under which a job's tasks know it; "" when there is none. All components of a heterogeneous job have that of the first."""
    return _number(variables.get("SLURM_HET_JOB_ID", "")) or _number(variables.get("SLURM_JOB_ID", ""))


def job_of(variables: Mapping[str, str]) -> SlurmJob:
    """What the variables say of it; what is no name or number is left out."""
    offset = _component(variables)
    # In a step the plain variables are those of the first component.
    own = "" if offset is None else f"_HET_GROUP_{offset}"

    def word(name: str) -> str:
        value = variables.get(name + own) or variables.get(name, "")
        return value if _WORD.fullmatch(value) and value != "(null)" else ""

    task = _number(variables.get("SLURM_ARRAY_TASK_ID", ""))
    het_job = _number(variables.get("SLURM_HET_JOB_ID", "")) or _number(variables.get("SLURM_JOB_ID_HET_GROUP_0", ""))
    return SlurmJob(
        user=word("SLURM_JOB_USER"),
        account=word("SLURM_JOB_ACCOUNT"),
        partition=word("SLURM_JOB_PARTITION"),
        qos=word("SLURM_JOB_QOS"),
        array_job=_number(variables.get("SLURM_ARRAY_JOB_ID", "")),
        array_task=int(task) if task and int(task) < _TASKS_MAX else None,
        het_job=het_job,
        het_offset=offset,
    )


def _component(variables: Mapping[str, str]) -> int | None:
    """Number of the component that has this node: no variable says it, but each component's nodes are told."""
    node, looked_at = variables.get("SLURMD_NODENAME", ""), 0
    for number in range(_COMPONENTS_MAX):
        nodes = variables.get(f"SLURM_JOB_NODELIST_HET_GROUP_{number}")
        if nodes is None or looked_at > _NODES_MAX:
            return None
        try:
            names = hostlist.expand(nodes)
        except Invalid:
            return None
        if node in names:
            return number
        looked_at += len(names)
    return None


def _number(value: str) -> str:
    return value if _NUMBER.fullmatch(value) else ""
