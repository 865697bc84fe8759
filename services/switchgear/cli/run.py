"""`switchgear run`: a training script, here without any server, on several machines that meet, or as a job of the cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import socket
import sys
import time
import uuid
from datetime import datetime
from pathlib import Path

from switchgear.cli import devices, exits, queue_flags, run_options
from switchgear.cli.client import connect, whole_list
from switchgear.cli.goodput import tell_at_end
from switchgear.cli.logs import Shown
from switchgear.cli.output import tell
from switchgear.cli.slurm.flags import add_slurm_flags
from switchgear.cli.slurm.flags import given as given_for_slurm
from switchgear.cli.slurm.task import Task, is_silent, task_from
from switchgear.cli.state import DEFAULT_GRPC, default_state_dir, read_running
from switchgear.cli.torchrun_flags import add_flags, ignored
from switchgear.core import names
from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.core.rpc import split_address
from switchgear.launcher.logs import EchoRule
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import job_service_pb2 as jobs

POLL_S = 0.2
_FINAL = {jobs.Job.SUCCEEDED, jobs.Job.FAILED, jobs.Job.CANCELLED}

EPILOG = """examples:
  switchgear run --standalone --nproc-per-node 2 -- train.py --epochs 3
  switchgear run --nnodes 2 --nproc-per-node 8 --checkpoint-dir /data/llama --name llama -- train.py
  switchgear run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint gpu-01:29400 --rdzv-id llama train.py    (on each machine)
  srun --ntasks-per-node=1 switchgear run --checkpoint-dir /data/llama train.py                      (in a Slurm batch script)

The script needs no change: it sees the environment variables of torchrun. With --checkpoint-dir the checkpoints that it
writes there are verified, damaged ones are moved aside before a restart, and SWITCHGEAR_RESUME_FROM names the newest good one.
Every flag of torchrun is accepted, and its PET_ variables are read; docs/torchrun.md says which differ."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EPILOG}\n\n{queue_flags.EXAMPLES}\n\n{exits.TABLE}"
    add_flags(parser, os.environ)
    parser.add_argument(
        "--checkpoint-dir", type=Path, metavar="DIR", help="folder in which the script keeps its checkpoints"
    )
    parser.add_argument("--name", help="name of the job (default: --rdzv-id, or the script's name and a random part)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable for the ranks, or hand on this shell's; on a cluster they otherwise have the agent's environment",
    )
    parser.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that the script imports, imported once for all restarts; may be given several times",
    )
    parser.add_argument(
        "--hang-timeout",
        metavar="SECONDS|off",
        help="time without a step after which ranks count as hung (default: learned from the steps)",
    )
    parser.add_argument(
        "--python",
        default=os.environ.get("PYTHON_EXEC") or sys.executable,
        help="interpreter of the ranks (default: $PYTHON_EXEC, or the one of this command)",
    )
    parser.add_argument("--detach", action="store_true", help="with a server: submit and return at once")
    add_slurm_flags(parser)
    queue_flags.add_queue_flags(parser)
    parser.add_argument("script", help="the training script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


def main(args: argparse.Namespace) -> int:
    try:
        task = _slurm_task(args)
        if task:
            return _ride(args, task)
    except Invalid as error:
        if is_silent(os.environ):  # each task of the step has it, and one of them says it
            return exits.exit_code(error.reason)
        raise
    if given := given_for_slurm(args):
        raise Invalid(
            f"{', '.join(given)}: counts inside of a Slurm job, and this runs in none",
            Reason.BAD_FIELD,
            field=given[0].removeprefix("--"),
        )
    _, most = run_options.nodes(args)
    nproc = run_options.ranks(args)
    meeting = run_options.rendezvous(args)
    echo, stopping = run_options.echo(args), run_options.stopping(args, os.environ)
    if args.standalone:
        _require_alone(args, most)
    if unused := ignored(args):
        tell(f"switchgear: ignored, see docs/torchrun.md: {' '.join(unused)}")
    to_server = not args.standalone and (
        args.server or args.detach or (meeting is None and (most > 1 or _has_server()))
    )
    if to_server and isinstance(nproc, str):
        nproc = _gpus_of_nodes(args.server, nproc)
    spec = run_options.job_spec(args, devices.ranks_here(nproc, os.environ) if isinstance(nproc, str) else nproc)
    if to_server and meeting:
        tell("switchgear: the server places the nodes: where they would meet without one is ignored")
    together = most > 1 and not to_server
    name = _name(args, unique=to_server or not (together or _id(args)))
    if to_server:
        queue_flags.apply(args, spec, datetime.now().astimezone())
        if args.array:
            return _submit_array(args.server, name, spec, args.array)
        return _submit(args.server, name, spec, echo, detach=args.detach)
    if given := queue_flags.asked_for(args):
        raise Invalid(
            f"{', '.join(given)}: for a cluster, and this runs without one; leave it away or name a server with --server",
            Reason.BAD_FIELD,
            field=given[0].removeprefix("--"),
        )
    if args.log_dir:
        run_options.require_log_folder(Path(args.log_dir))
    if together and meeting is not None:
        from switchgear.cli.multinode import run as run_together

        return asyncio.run(run_together(name, spec, meeting, echo, stopping))
    from switchgear.cli.standalone import run

    if not args.standalone:
        tell("switchgear: runs on this machine alone; a server is named with --server or started with `switchgear up`")
    return asyncio.run(run(name, spec, echo, stopping))


def _slurm_task(args: argparse.Namespace) -> Task | None:
    if args.standalone or args.server or args.detach:
        return None
    return task_from(os.environ, socket.gethostname())


def _ride(args: argparse.Namespace, task: Task) -> int:
    from switchgear.cli.slurm import start

    if given := queue_flags.asked_for(args):
        raise Invalid(
            f"{', '.join(given)}: Slurm has decided that for this job already; give sbatch the like, or submit to a server with --server",
            Reason.BAD_FIELD,
            field=given[0].removeprefix("--"),
        )
    start.fill(args, task)
    nproc = run_options.ranks(args)
    spec = run_options.job_spec(args, devices.ranks_here(nproc, os.environ) if isinstance(nproc, str) else nproc)
    _name(args, unique=False)
    if args.log_dir:
        run_options.require_log_folder(Path(args.log_dir))
    echo, stopping = run_options.echo(args), run_options.stopping(args, os.environ)
    return asyncio.run(start.run(task, args, spec, echo=echo, stopping=stopping, environment=os.environ))


def _require_alone(args: argparse.Namespace, nodes: int) -> None:
    if nodes != 1:
        raise Invalid("--standalone runs on this machine only: leave --nnodes away", Reason.BAD_FIELD, field="nnodes")
    if args.server or args.detach:
        raise Invalid(
            "--standalone runs without a server: leave --server and --detach away", Reason.BAD_FIELD, field="standalone"
        )


def _id(args: argparse.Namespace) -> str:
    """Empty without one; `none` is what torchrun calls a job without an id."""
    return "" if args.rdzv_id in (None, "none") else args.rdzv_id


def _name(args: argparse.Namespace, *, unique: bool) -> str:
    """The job's id; nodes that meet, and a command that is typed again with an id, must come to the same. unique: with a random part."""
    if args.name is not None:
        name: str = args.name
    else:
        name = names.to_id(_id(args) or Path(args.script).stem)[:40].rstrip(".-")
        if unique:
            name = f"{name}-{secrets.token_hex(3)}"
    names.job_name(name)  # a wrong one is told before anything starts
    return name


def _has_server() -> bool:
    """Whether a control plane was named or has been started here, or one answers where they are."""
    if os.environ.get("SWITCHGEAR_SERVER") or read_running(default_state_dir()):
        return True
    try:
        socket.create_connection(split_address(DEFAULT_GRPC), timeout=1).close()
    except OSError:
        return False
    return True


def _gpus_of_nodes(server: str | None, asked: str) -> int:
    """GPUs of each node of the cluster. Raises Invalid when that is no number, or not what was asked for."""
    with connect(server) as client:
        nodes = whole_list(client.fleet.ListNodes, fleet.ListNodesRequest(), "nodes")
    sizes = {len(node.gpus) for node in nodes if node.gpus}
    if asked == "cpu" or len(sizes) != 1:
        has = "its nodes have " + (", ".join(map(str, sorted(sizes))) if sizes else "no") + " GPUs"
        raise Invalid(
            f"--nproc-per-node {asked} says nothing on this cluster: {has}; write a number",
            Reason.BAD_FIELD,
            field="nproc_per_node",
        )
    return sizes.pop()


def _submit(server: str | None, name: str, spec: jobs.JobSpec, echo: EchoRule, *, detach: bool) -> int:
    with connect(server) as client:
        request = jobs.CreateJobRequest(job=jobs.Job(spec=spec), job_id=name, request_id=uuid.uuid4().hex)
        job = client.jobs.CreateJob(request)
    tell(f"submitted {job.name}")
    if detach:
        return exits.OK
    try:
        return _follow(server, job, echo)
    except KeyboardInterrupt:
        print(f"\n{job.name} goes on; `switchgear cancel {name}` ends it", file=sys.stderr)
        raise


def _submit_array(server: str | None, name: str, spec: jobs.JobSpec, size: int) -> int:
    with connect(server) as client:
        created = client.jobs.CreateJobArray(
            jobs.CreateJobArrayRequest(job=jobs.Job(spec=spec), job_id=name, size=size, request_id=uuid.uuid4().hex)
        )
    tell(f"submitted {created.jobs[0]} to {created.jobs[-1]}")
    return exits.OK


def _follow(server: str | None, job: jobs.Job, echo: EchoRule) -> int:
    """Shows state and logs until the job ends, also through a restart of the control plane."""
    nproc = job.spec.nproc_per_node
    shown = Shown(
        Path(job.spec.log_directory), 1, sys.maxsize, lambda rank, stream: stream in echo.streams(rank % nproc)
    )
    told = ""
    while True:
        try:
            with connect(server) as client:
                job = client.jobs.GetJob(jobs.GetJobRequest(name=job.name))
            news = f"{job.name} {jobs.Job.State.Name(job.state)}" + (f": {job.message}" if job.message else "")
        except Unavailable:
            news = "the control plane does not answer: ranks go on for their lease (30 s unless set otherwise), and start again when it is back"
        shown.poll(end=job.state in _FINAL)
        if news != told:
            told = news
            tell(news)
        if job.state in _FINAL:
            tell_at_end(server, job.name)
            return exits.OK if job.state == jobs.Job.SUCCEEDED else exits.JOB_FAILED
        time.sleep(POLL_S)
