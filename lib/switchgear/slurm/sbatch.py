"""A submission as options of sbatch. Pure: the script itself goes in on standard input."""

from __future__ import annotations

from collections.abc import Sequence

from switchgear.slurm.hostlist import compress
from switchgear.slurm.model import Submission


def options(submission: Submission) -> Sequence[str]:
    """For sbatch, each as one argument, so that no value is read as another option."""
    asked = [
        "--parsable",
        # All that sbatch itself has, which is what the submission says and no more.
        "--export=ALL",
        f"--job-name={submission.name}",
        f"--nodes={len(submission.nodes) or submission.node_count}",
        f"--ntasks={submission.tasks}",
        f"--chdir={submission.working_directory}",
        "--requeue" if submission.requeue else "--no-requeue",
    ]
    if submission.gpus_per_node:
        kind = f"{submission.gpu_type}:" if submission.gpu_type else ""
        asked.append(f"--gres=gpu:{kind}{submission.gpus_per_node}")
    if submission.time_limit_s is not None:
        minutes, seconds = divmod(submission.time_limit_s, 60)
        asked.append(f"--time={minutes}:{seconds:02d}")
    optional = {
        "nodelist": compress(submission.nodes),
        "exclude": compress(submission.excluded_nodes),
        "comment": submission.comment,
        "cpus-per-task": submission.cpus_per_task,
        "mem": None if submission.memory_per_node_mib is None else f"{submission.memory_per_node_mib}M",
        "partition": submission.partition,
        "account": submission.account,
        "qos": submission.qos,
        "dependency": submission.dependency,
        "output": submission.output,
    }
    return asked + [f"--{name}={value}" for name, value in optional.items() if value]
