"""`switchgear jobs hold | release | requeue`, `switchgear nodes label | taint`: a job's turn, and what nodes are matched by."""

from __future__ import annotations

import argparse
import uuid

from switchgear.cli import exits
from switchgear.cli.client import Client, connect
from switchgear.cli.output import print_json, print_line
from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import job_service_pb2 as jobs


def add_hold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="a job in the queue, which stays there until it is released")
    parser.add_argument("--reason", default="", help="shown wherever the job is")


def hold(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        request = jobs.HoldJobRequest(name=_job(args), reason=args.reason, request_id=uuid.uuid4().hex)
        return _show_job(client.jobs.HoldJob(request), as_json=args.json)


def add_release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="a job that is held")


def release(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        request = jobs.ReleaseJobRequest(name=_job(args), request_id=uuid.uuid4().hex)
        return _show_job(client.jobs.ReleaseJob(request), as_json=args.json)


def add_requeue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="a job that runs: it is stopped, and goes on later from its newest good checkpoint")
    parser.add_argument("--hold", action="store_true", help="hold it then, so that it does not start at once")


def requeue(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        request = jobs.RequeueJobRequest(name=_job(args), hold=args.hold, request_id=uuid.uuid4().hex)
        return _show_job(client.jobs.RequeueJob(request), as_json=args.json)


def add_label(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  switchgear nodes label gpu-01 pool=a topology/leaf=l7\n  switchgear nodes label gpu-01 pool="
    )
    parser.add_argument("node", help="the node")
    parser.add_argument("labels", nargs="+", metavar="KEY=VALUE", help="set; KEY= takes away what was set here")


def label(args: argparse.Namespace) -> int:
    given = [one.partition("=") for one in args.labels]
    for one, (key, equals, _) in zip(args.labels, given, strict=True):
        if not (key and equals):
            raise Invalid(f"{one!r} must be KEY=VALUE, or KEY= to take it away", Reason.BAD_FIELD, field="labels")
    with connect(args.server) as client:
        request = fleet.LabelNodeRequest(labels={key: value for key, _, value in given})
        return _label(client, args, request)


def add_taint(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  switchgear nodes taint gpu-01 maintenance\n  switchgear nodes taint gpu-01 maintenance-"
    )
    parser.add_argument("node", help="the node")
    parser.add_argument(
        "taints", nargs="+", metavar="TAINT", help="only jobs that tolerate it come here; TAINT- takes it away"
    )


def taint(args: argparse.Namespace) -> int:
    request = fleet.LabelNodeRequest(
        add_taints=[one for one in args.taints if not one.endswith("-")],
        remove_taints=[one.removesuffix("-") for one in args.taints if one.endswith("-")],
    )
    with connect(args.server) as client:
        return _label(client, args, request)


def _label(client: Client, args: argparse.Namespace, request: fleet.LabelNodeRequest) -> int:
    request.name, request.request_id = qualified(args.node, "nodes"), uuid.uuid4().hex
    node = client.fleet.LabelNode(request)
    if args.json:
        print_json(node)
    else:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(node.labels.items())) or "none"
        print_line(f"{node.name}  labels: {labels}  taints: {', '.join(node.taints) or 'none'}")
    return exits.OK


def _job(args: argparse.Namespace) -> str:
    return qualified(args.job, "jobs")


def _show_job(job: jobs.Job, *, as_json: bool) -> int:
    if as_json:
        print_json(job)
    else:
        print_line(f"{job.name} is {jobs.Job.State.Name(job.state)}: {job.message}")
    return exits.OK
