"""Whose a process is, from what the kernel says about it. Pure: texts in, names out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from switchgear.agent.association import slurm as slurm_variables
from switchgear.agent.association.slurm import UNKNOWN, SlurmJob
from switchgear.core import names
from switchgear.core.errors import Invalid


@dataclass(frozen=True, slots=True)
class Owner:
    """For whom a GPU works; what is not known is empty, and all of it for a process of nobody's job.

    job: `jobs/{job}`, one of ours. hpc_job: Slurm's id. pod, namespace, container: names in Kubernetes; pod_uid: the pod's for ever.
    """

    job: str = ""
    hpc_job: str = ""
    pod: str = ""
    namespace: str = ""
    container: str = ""
    pod_uid: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """What a process bears of its job. container_id: 64 hexadecimal digits. slurm: as its environment says, which its user can set."""

    job: str = ""
    hpc_job: str = ""
    pod_uid: str = ""
    container_id: str = ""
    slurm: SlurmJob = UNKNOWN


# /slurm/uid_1000/job_17/step_0 (v1), /system.slice/n1_slurmstepd.scope/job_17/step_0/user/task_0 (v2)
_SLURM = re.compile(r"/(?:slurm[^/\n]*|[^/\n]*slurmstepd\.scope)(?:/uid_\d+)?/job_(\d{1,20})(?=/|$)", re.MULTILINE)
# With cgroupfs /kubepods/burstable/pod<uid>/<id>, with systemd …-pod<uid, _ for ->.slice/cri-containerd-<id>.scope or
# …-pod<uid>.slice:cri-containerd:<id>; a static pod's uid is a hash without dashes.
_POD = re.compile(
    r"(?<=[/-])pod([0-9a-f]{8}([-_])[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}|[0-9a-f]{32})(?=[./:]|$)",
    re.MULTILINE,
)
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def marks_of(cgroup: str, environment: bytes) -> Marks:
    """What `/proc/PID/cgroup` (proc(5)) and `/proc/PID/environ` say. The cgroup wins: a user can set the environment."""
    entries = (entry.partition(b"=") for entry in environment.split(b"\0"))
    variables = {name: value for name, _, value in entries}
    of_slurm = {
        name.decode("ascii", "replace"): value.decode("ascii", "replace")
        for name, value in variables.items()
        if name.startswith(b"SLURM")
    }
    told = slurm_variables.job_id(of_slurm)
    slurm, pod, container = _SLURM.search(cgroup), _POD.search(cgroup), _CONTAINER.search(cgroup)
    return Marks(
        job=_job(variables.get(b"SWITCHGEAR_JOB", b"")),
        hpc_job=slurm[1] if slurm else told,
        pod_uid=pod[1].replace("_", "-") if pod else "",
        container_id=container[0] if container else "",
        # An environment that names another job than the cgroup says nothing of this one.
        slurm=slurm_variables.job_of(of_slurm) if told and (not slurm or slurm[1] == told) else UNKNOWN,
    )


def _job(value: bytes) -> str:
    text = value.decode("ascii", "replace")
    try:
        names.parse(text, "jobs/*")
    except Invalid:
        return ""
    return text
