"""`switchgear run` inside of a Slurm allocation: what its flags leave open comes from Slurm."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from switchgear.cli import multinode, run_options
from switchgear.cli.lease_flags import timing_of
from switchgear.cli.output import tell
from switchgear.cli.slurm import flags
from switchgear.cli.slurm.meeting import certificates, meeting_from
from switchgear.cli.slurm.orphaned import Orphaned
from switchgear.cli.slurm.ride import Ride
from switchgear.cli.slurm.task import Task
from switchgear.cli.state import default_state_dir
from switchgear.core.clock import SystemClock
from switchgear.core.errors import Invalid, Reason
from switchgear.launcher.logs import EchoRule
from switchgear.slurm.commands import Commands
from switchgear.v1.job_service_pb2 import JobSpec

#: Beside the checkpoints, hidden from whoever lists them.
TURNS_FOLDER = ".switchgear-runs"


def fill(args: argparse.Namespace, task: Task) -> None:
    """Puts what Slurm says where no flag was given. Raises Invalid when the flags ask for more nodes than there are."""
    args.nnodes = args.nnodes or str(len(task.nodes))
    args.nproc_per_node = args.nproc_per_node or str(task.gpus or 1)
    args.name = args.name or task.name
    _, most = run_options.nodes(args)
    if most > len(task.nodes):
        raise Invalid(
            f"--nnodes {args.nnodes}: the Slurm step {task.name} has {len(task.nodes)} nodes; ask Slurm for more (sbatch --nodes), or write "
            f"--nnodes MIN:{len(task.nodes)}",
            Reason.BAD_FIELD,
            field="nnodes",
        )


async def run(
    task: Task,
    args: argparse.Namespace,
    spec: JobSpec,
    *,
    echo: EchoRule,
    stopping: run_options.Stopping,
    environment: Mapping[str, str],
) -> int:
    """Takes part as `multinode.run` does; returns its exit code."""
    options, timing, slurm = flags.options_from(args, environment), timing_of(environment), Commands()
    # Slurm sends it to every process of the step; the run that keeps the job together takes it for all of them.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    meeting = await meeting_from(task, run_options.rendezvous(args), spec.nnodes, slurm)
    own = default_state_dir() / "slurm" / task.name
    keys = own / f"pki-{task.restarts}"
    os.environ.update(certificates(meeting, keys, environment))
    if task.step_id is None and len(task.nodes) > 1:
        tell(
            "switchgear: this is not started by srun: `srun --ntasks-per-node=1 switchgear run …` starts it on all nodes of the job at once"
        )
    if len(os.sched_getaffinity(0)) < min(spec.nproc_per_node, os.cpu_count() or 1):
        tell(
            f"switchgear: {spec.nproc_per_node} ranks share {len(os.sched_getaffinity(0))} processors, which is what srun gives this task; "
            "write `srun --cpus-per-task=N`, or --cpu-bind=none"
        )
    if len(task.nodes) > spec.nnodes and task.node_rank == 0:
        tell(f"switchgear: {len(task.nodes) - spec.nnodes} of {len(task.nodes)} nodes are spares")

    async def begin() -> Ride:
        folder = Path(spec.checkpoint_directory) / TURNS_FOLDER if spec.checkpoint_directory else own / "runs"
        return await Ride.begin(task, options, slurm, folder, timing=timing, clock=SystemClock())

    try:
        orphaned = Orphaned(task, options, timing, slurm).told
        lender = multinode.Lender(begin, orphaned)
        return await multinode.run(args.name, spec, meeting, echo, stopping, lender=lender)
    finally:
        if meeting.hosts:
            shutil.rmtree(keys, ignore_errors=True)
