"""`switchgear run`: a training script, here without any server or as a job of the cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time
import uuid
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.logs import Shown
from switchgear.cli.output import tell
from switchgear.cli.scripts import require_script
from switchgear.core import names
from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.v1 import job_service_pb2 as jobs

POLL_S = 0.2
MAX_RESTARTS_DEFAULT = 3
#: Beyond any cluster, so a slip of the finger is told at once.
RANKS_MAX = 100_000
RESTARTS_MAX = 1_000_000
_FINAL = {jobs.Job.SUCCEEDED, jobs.Job.FAILED, jobs.Job.CANCELLED}

EPILOG = """examples:
  switchgear run --standalone --nproc-per-node 2 -- train.py --epochs 3
  switchgear run --nnodes 2 --nproc-per-node 8 --checkpoint-dir /data/llama --name llama -- train.py

The script needs no change: it sees the environment variables of torchrun. With --checkpoint-dir the checkpoints that it
writes there are verified, damaged ones are moved aside before a restart, and SWITCHGEAR_RESUME_FROM names the newest good one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EPILOG}\n\n{exits.TABLE}"
    parser.add_argument("--standalone", action="store_true", help="run on this machine, with no server")
    parser.add_argument("--nnodes", type=int, default=1, metavar="N", help="nodes (default: 1)")
    parser.add_argument(
        "--nproc-per-node",
        "--nproc_per_node",
        type=int,
        default=1,
        metavar="K",
        help="ranks a node, one GPU each on a cluster (default: 1)",
    )
    parser.add_argument(
        "--max-restarts",
        "--max_restarts",
        type=int,
        default=MAX_RESTARTS_DEFAULT,
        metavar="N",
        help="restarts that the script's own failures may use; faults of the machines do not count; 0: never restart (default: 3)",
    )
    parser.add_argument(
        "--checkpoint-dir", type=Path, metavar="DIR", help="folder in which the script keeps its checkpoints"
    )
    parser.add_argument("--name", help="name of the job (default: the script's name and a random part)")
    parser.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="folder for the ranks' logs (default: in the state directory)"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable for the ranks, or hand on this shell's; on a cluster they otherwise have the agent's environment",
    )
    parser.add_argument("-m", "--module", action="store_true", help="the script is a module, as with python -m")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of the ranks (default: the one of this command)"
    )
    parser.add_argument("--detach", action="store_true", help="with a server: submit and return at once")
    parser.add_argument("script", help="the training script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


def main(args: argparse.Namespace) -> int:
    spec = _spec(args)
    name = (
        args.name
        if args.name is not None
        else f"{names.to_id(Path(args.script).stem)[:40].rstrip('.-')}-{secrets.token_hex(3)}"
    )
    names.job_name(name)  # a wrong one is told before anything starts
    if args.standalone:
        from switchgear.cli.standalone import run

        if args.nnodes != 1:
            raise Invalid(
                "--standalone runs on this machine only: leave --nnodes away", Reason.BAD_FIELD, field="nnodes"
            )
        return asyncio.run(run(name, spec))
    return _submit(args.server, name, spec, detach=args.detach)


def _spec(args: argparse.Namespace) -> jobs.JobSpec:
    for field in ("nnodes", "nproc_per_node"):
        if getattr(args, field) < 1:
            raise Invalid(f"--{field.replace('_', '-')} must be 1 or more", Reason.BAD_FIELD, field=field)
        if getattr(args, field) > RANKS_MAX:
            raise Invalid(f"--{field.replace('_', '-')} must be {RANKS_MAX} or less", Reason.BAD_FIELD, field=field)
    if not 0 <= args.max_restarts <= RESTARTS_MAX:
        raise Invalid(f"--max-restarts must be 0 to {RESTARTS_MAX}", Reason.BAD_FIELD, field="max_restarts")
    if args.checkpoint_dir and args.checkpoint_dir.exists() and not args.checkpoint_dir.is_dir():
        raise Invalid(
            f"--checkpoint-dir {args.checkpoint_dir} is not a folder", Reason.BAD_FIELD, field="checkpoint_dir"
        )
    if args.standalone and (args.server or args.detach):
        raise Invalid(
            "--standalone runs without a server: leave --server and --detach away", Reason.BAD_FIELD, field="standalone"
        )
    if not args.module:
        require_script(args.script)
    return jobs.JobSpec(
        argv=[*(["-m"] if args.module else []), args.script, *args.arguments],
        environment=dict(_variable(given) for given in args.env),
        working_directory=str(Path.cwd()),
        python=args.python,
        nnodes=args.nnodes,
        nproc_per_node=args.nproc_per_node,
        max_restarts=args.max_restarts,
        checkpoint_directory=str(args.checkpoint_dir.absolute()) if args.checkpoint_dir else "",
        log_directory=str(args.log_dir.absolute()) if args.log_dir else "",
    )


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name:
        raise Invalid(f"--env {given!r} names no variable; write --env NAME=VALUE", Reason.BAD_FIELD, field="env")
    if not equals and name not in os.environ:
        raise Invalid(
            f"--env {name}: it is not set in this shell; set it or write --env {name}=VALUE",
            Reason.BAD_FIELD,
            field="env",
        )
    return name, value if equals else os.environ[name]


def _submit(server: str | None, name: str, spec: jobs.JobSpec, *, detach: bool) -> int:
    with connect(server) as client:
        request = jobs.CreateJobRequest(job=jobs.Job(spec=spec), job_id=name, request_id=uuid.uuid4().hex)
        job = client.jobs.CreateJob(request)
    tell(f"submitted {job.name}")
    if detach:
        return exits.OK
    try:
        return _follow(server, job)
    except KeyboardInterrupt:
        print(f"\n{job.name} goes on; `switchgear cancel {name}` ends it", file=sys.stderr)
        raise


def _follow(server: str | None, job: jobs.Job) -> int:
    """Shows state and logs until the job ends, also through a restart of the control plane."""
    shown = Shown(Path(job.spec.log_directory), 1, sys.maxsize, None)
    told = ""
    while True:
        try:
            with connect(server) as client:
                job = client.jobs.GetJob(jobs.GetJobRequest(name=job.name))
            news = f"{job.name} {jobs.Job.State.Name(job.state)}" + (f": {job.message}" if job.message else "")
        except Unavailable:
            news = "the control plane does not answer: ranks go on for 30 s without it, and start again when it is back"
        shown.poll(end=job.state in _FINAL)
        if news != told:
            told = news
            tell(news)
        if job.state in _FINAL:
            return exits.OK if job.state == jobs.Job.SUCCEEDED else exits.JOB_FAILED
        time.sleep(POLL_S)
