"""`switchgear cancel | cordon | uncordon | sim inject`: changes of one thing."""

from __future__ import annotations

import argparse
import getpass
import uuid
from pathlib import Path
from typing import cast

import grpc

from switchgear.cli import exits
from switchgear.cli.client import Client, connect, whole_list
from switchgear.cli.output import last, print_json, print_line
from switchgear.cli.show import qualified
from switchgear.core.rpc import FailedCall
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import job_service_pb2 as jobs


def _actor() -> str:
    return f"user:{getpass.getuser()}"


def add_cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="the job to end, or the array: all of its members")


def cancel(args: argparse.Namespace) -> int:
    name = qualified(args.job, "jobs")
    with connect(args.server) as client:
        try:
            ended = [_cancel(client, name)]
        except grpc.RpcError as error:
            members = _members(client, name) if cast(FailedCall, error).code() is grpc.StatusCode.NOT_FOUND else []
            if not members:
                raise
            ended = [_cancel(client, one) for one in members]
    if args.json:
        print_json(ended if len(ended) > 1 else ended[0])
    for job in () if args.json else ended:
        print_line(f"{job.name} is {jobs.Job.State.Name(job.state)}")
    return exits.OK


def _cancel(client: Client, name: str) -> jobs.Job:
    job: jobs.Job = client.jobs.CancelJob(jobs.CancelJobRequest(name=name, request_id=uuid.uuid4().hex))
    return job


def _members(client: Client, name: str) -> list[str]:
    """Those of the array of this name that have not ended."""
    final = (jobs.Job.SUCCEEDED, jobs.Job.FAILED, jobs.Job.CANCELLED)
    listed: list[jobs.Job] = whole_list(client.jobs.ListJobs, jobs.ListJobsRequest(), "jobs")
    return [job.name for job in listed if job.spec.array == last(name) and job.state not in final]


def add_cordon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", help="the node to take out of placement; what runs there goes on")
    parser.add_argument("--reason", required=True, help="shown wherever the node is")


def cordon(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        node = client.fleet.CordonNode(
            fleet.CordonNodeRequest(
                name=qualified(args.node, "nodes"), reason=args.reason, actor=_actor(), request_id=uuid.uuid4().hex
            )
        )
    return _show(node, as_json=args.json)


def add_uncordon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", help="the node to put back into placement")


def uncordon(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        node = client.fleet.UncordonNode(
            fleet.UncordonNodeRequest(name=qualified(args.node, "nodes"), actor=_actor(), request_id=uuid.uuid4().hex)
        )
    return _show(node, as_json=args.json)


def _show(node: fleet.Node, *, as_json: bool) -> int:
    if as_json:
        print_json(node)
    else:
        print_line(f"{node.name} is {fleet.Node.State.Name(node.state)}" + (f": {node.reason}" if node.reason else ""))
    return exits.OK


def add_inject(parser: argparse.ArgumentParser) -> None:
    from switchgear.sim.faults import SYNTAX

    parser.epilog = (
        "examples:\n  switchgear inject --agent-state-dir DIR gpu 3 xid 79\n"
        f"  switchgear inject --agent-state-dir DIR gpu 1 thermal-throttle for 30s\n\nfaults:\n{SYNTAX}"
    )
    parser.add_argument(
        "--agent-state-dir", type=Path, required=True, help="state directory of the agent with simulated GPUs"
    )
    parser.add_argument("--gpu", type=int, default=0, help="without FAULT: index of the simulated GPU (default 0)")
    parser.add_argument(
        "--xid", type=int, default=79, help="without FAULT: XID that it reports (default 79, off the bus)"
    )
    parser.add_argument("fault", nargs="*", metavar="FAULT", help="what happens, in the words below")


def inject(args: argparse.Namespace) -> int:
    from switchgear.sim import inject as sim

    fault = " ".join(args.fault) or f"gpu {args.gpu} xid {args.xid}"
    sim.inject(args.agent_state_dir, fault)
    print_line(f"injected: {fault}")
    return exits.OK
