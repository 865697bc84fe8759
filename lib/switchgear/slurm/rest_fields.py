"""What slurmrestd wants to read, by version of its API. Pure.

v0.0.38 (22.05) takes the names of sbatch's options; v0.0.39 (23.02) and newer those of Slurm's own job description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from switchgear.slurm.hostlist import compress
from switchgear.slurm.model import Submission

Version = tuple[int, ...]
OLD: Version = (0, 0, 38)
#: Slurm takes no job without an environment.
_PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def submission_body(script: str, submission: Submission, version: Version) -> Mapping[str, Any]:
    """For POST job/submit."""
    environment = _PATH | dict(submission.environment)
    count = len(submission.nodes) or submission.node_count
    minutes = None if submission.time_limit_s is None else max(1, -(-submission.time_limit_s // 60))
    gpus = ":".join(filter(None, ("gpu", submission.gpu_type, str(submission.gpus_per_node))))
    job: dict[str, Any] = {
        "name": submission.name,
        "comment": submission.comment,
        "tasks": submission.tasks,
        "cpus_per_task": submission.cpus_per_task,
        "memory_per_node": submission.memory_per_node_mib,
        "partition": submission.partition,
        "account": submission.account,
        "qos": submission.qos,
        "time_limit": minutes,
        "dependency": submission.dependency,
        "current_working_directory": submission.working_directory,
        "standard_output": submission.output,
    }
    if version <= OLD:
        job |= {
            "nodes": [count, count],
            "nodelist": compress(submission.nodes),
            "exclude_nodes": compress(submission.excluded_nodes),
            "gres": gpus if submission.gpus_per_node else None,
            "environment": environment,
        }
    else:
        prefix = "gres/" if version > (0, 0, 39) else "gres:"
        job |= {
            "minimum_nodes": count,
            "maximum_nodes": count,
            "required_nodes": list(submission.nodes),
            "excluded_nodes": list(submission.excluded_nodes),
            "tres_per_node": f"{prefix}{gpus}" if submission.gpus_per_node else None,
            "environment": [f"{name}={value}" for name, value in environment.items()],
        }
    given = {name: value for name, value in job.items() if value not in (None, "", [])}
    return {"script": script, "job": {**given, **_requeue(submission.requeue, version)}}


def exclusion(nodes: Sequence[str], version: Version) -> Mapping[str, Any]:
    """For POST job/ID: nodes that it shall not start on."""
    if version <= OLD:
        return {"exclude_nodes": compress(nodes)}
    return {"excluded_nodes": list(nodes), **_required(version)}


def start_at(now_s: int, version: Version) -> Mapping[str, Any]:
    """For POST job/ID: when it may start, in Unix seconds."""
    # The old one reads what sbatch reads, and sbatch reads no Unix seconds.
    return {"begin_time": "now" if version <= OLD else now_s, **_required(version)}


def _required(version: Version) -> Mapping[str, Any]:
    """v0.0.39 takes no change of a job that does not speak of its environment, which it then leaves alone."""
    return {"environment": None} if version == (0, 0, 39) else {}


def _requeue(requeue: bool, version: Version) -> Mapping[str, Any]:
    if version > OLD:
        return {"requeue": requeue}
    return {"requeue": True} if requeue else {"no_requeue": True}
