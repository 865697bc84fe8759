"""What Slurm's environment says of the task that a process is (srun(1), OUTPUT ENVIRONMENT VARIABLES). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from switchgear.core import names
from switchgear.core.errors import Invalid, Reason
from switchgear.slurm.hostlist import expand

#: Below the ports that Linux gives out by itself (32768 and above), and clear of Slurm's own (6817 to 6820).
_PORT_FIRST, _PORTS = 20_000, 12_000
#: Apart, so that steps and runs of one job, and jobs that follow each other, meet at ports of their own: what an earlier run has left
#: may still listen at its own.
_PORTS_A_STEP, _PORTS_A_RUN = 997, 4001
_JOB_NAME_LENGTH_MAX = 30


@dataclass(frozen=True, slots=True)
class Task:
    """One process on one node of an allocation.

    step_id: None when srun did not start it. node: NodeName of its node. nodes: those of its step, or of the job without one, in
    Slurm's order. gpus: of the job on this node; 0: none, or nobody said. restarts: how often the job was requeued. end_unix_s:
    when the time limit ends the job; None: the environment does not tell (Slurm before 22.05 and Debian's).
    """

    job_id: int
    job_name: str
    step_id: int | None
    node: str
    nodes: tuple[str, ...]
    gpus: int
    restarts: int
    end_unix_s: float | None
    #: Nodes that the whole job has, which may have more than one step.
    job_nodes: int

    @property
    def name(self) -> str:
        """Of the run: equal on all nodes and after each requeue, and no other step's."""
        base = names.to_id(self.job_name)[:_JOB_NAME_LENGTH_MAX].rstrip(".-")
        return f"{base}-{self.job_id}" + (f".{self.step_id}" if self.step_id else "")

    @property
    def run_id(self) -> str:
        """What the nodes of this run alone name alike: a process that an earlier run of the job has left is no part of it."""
        return f"{self.name}/{self.restarts}"

    @property
    def node_rank(self) -> int:
        """Place among the nodes, in Slurm's order, which follows the network's."""
        return self.nodes.index(self.node)

    @property
    def port(self) -> int:
        """Where the nodes meet. Each can tell; two jobs on one node rarely have the same, since ids near each other have other ones."""
        run = (self.step_id or 0) * _PORTS_A_STEP + self.restarts * _PORTS_A_RUN
        return _PORT_FIRST + (self.job_id + run) % _PORTS


def task_from(environment: Mapping[str, str], hostname: str) -> Task | None:
    """None outside of an allocation.

    hostname: of this machine, for a process that neither srun nor a batch script started.
    Raises Invalid where a run cannot work, with what to write instead.
    """
    job, listed = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_JOB_NODELIST", "")
    if not job.isdigit() or not listed:
        return None
    step = environment.get("SLURM_STEP_ID", "")
    nodes = expand(environment.get("SLURM_STEP_NODELIST", "") if step else listed) or expand(listed)
    node = environment.get("SLURMD_NODENAME") or hostname
    if node not in nodes:
        node = node.partition(".")[0]
    if node not in nodes:
        raise Invalid(
            f"this shell holds the Slurm job {job} but is on none of its nodes ({listed}); write `srun --ntasks-per-node=1 switchgear run …`, "
            "or --standalone to run on this machine all the same",
            Reason.BAD_FIELD,
            job=job,
        )
    _require_one_task_a_node(environment)
    end = environment.get("SLURM_JOB_END_TIME", "")
    return Task(
        job_id=int(job),
        job_name=environment.get("SLURM_JOB_NAME", ""),
        step_id=int(step) if step.isdigit() else None,
        node=node,
        nodes=nodes,
        gpus=_gpus(environment),
        restarts=_number(environment.get("SLURM_RESTART_COUNT", "")),
        end_unix_s=float(end) if end.isdigit() else None,
        job_nodes=len(expand(listed)),
    )


def is_silent(environment: Mapping[str, str]) -> bool:
    """Whether this is one of the tasks beyond the first, which need not repeat an error that all of them have."""
    return _number(environment.get("SLURM_PROCID", "")) > 0


def _require_one_task_a_node(environment: Mapping[str, str]) -> None:
    if "SLURM_STEP_ID" not in environment:
        return
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if all(int(count) == 1 for count in re.findall(r"(\d+)(?:\(x\d+\))?", tasks)):
        return
    raise Invalid(
        f"srun has started several tasks on a node ({tasks}), and one starts all ranks of its node: write `srun --ntasks-per-node=1 "
        "switchgear run --nproc-per-node K …`; without --nproc-per-node there is a rank for each GPU",
        Reason.BAD_FIELD,
        tasks_per_node=tasks,
    )


def _gpus(environment: Mapping[str, str]) -> int:
    """SLURM_GPUS_ON_NODE, or as many as Slurm lets the task see."""
    if (said := environment.get("SLURM_GPUS_ON_NODE", "")).isdigit():
        return int(said)
    if not environment.get("SLURM_JOB_GPUS") and not environment.get("SLURM_STEP_GPUS"):
        return 0
    return len([device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()])


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
