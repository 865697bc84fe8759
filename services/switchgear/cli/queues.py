"""`switchgear queues` and `switchgear reservations`: what the planner goes by."""

from __future__ import annotations

import argparse
import uuid
from datetime import datetime

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import last, local_time, print_json, print_line, print_table
from switchgear.cli.queue_flags import moment, seconds
from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason
from switchgear.v1alpha import planner_service_pb2 as pb


def add_queues(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  switchgear queues\n  switchgear queues set research --guaranteed 64 --limit 128\n"
        "  switchgear queues set vision --parent research --guaranteed 32\n  switchgear queues delete vision"
    )


def queues(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        found = client.planner.ListQueues(pb.ListQueuesRequest()).queues
    if args.json:
        print_json(list(found))
        return exits.OK
    print_table(
        ("QUEUE", "PARENT", "GUARANTEED", "LIMIT", "WEIGHT", "LENDS", "USED", "PENDING"),
        (
            (
                last(queue.name),
                last(queue.parent) or "-",
                f"{queue.guaranteed_gpus:g}",
                f"{queue.limit_gpus:g}" if queue.HasField("limit_gpus") else "-",
                f"{queue.weight:g}",
                "no" if queue.keeps else "yes",
                f"{queue.used_gpus:g}",
                queue.pending_jobs,
            )
            for queue in found
        ),
        "no queues: all jobs share alike; make one with `switchgear queues set NAME --guaranteed GPUS`",
    )
    return exits.OK


def add_set_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", help="made when it is not there; else what is not given stays")
    parser.add_argument("--parent", help="queue that it is a part of; '' for none")
    parser.add_argument("--guaranteed", type=float, metavar="GPUS", help="that its jobs may always have")
    parser.add_argument("--limit", metavar="GPUS|none", help="at most so many, with what others lend")
    parser.add_argument("--weight", type=float, help="of its share in what nobody is guaranteed")
    parser.add_argument("--lends", action=argparse.BooleanOptionalAction, help="others may use what it leaves")


def set_queue(args: argparse.Namespace) -> int:
    name = qualified(args.queue, "queues")
    with connect(args.server) as client:
        known = {queue.name: queue for queue in client.planner.ListQueues(pb.ListQueuesRequest()).queues}
        queue = known.get(name, pb.Queue(name=name))
        if args.parent is not None:
            queue.parent = qualified(args.parent, "queues") if args.parent else ""
        if args.guaranteed is not None:
            queue.guaranteed_gpus = args.guaranteed
        if args.weight is not None:
            queue.weight = args.weight
        if args.lends is not None:
            queue.keeps = not args.lends
        if args.limit == "none":
            queue.ClearField("limit_gpus")
        elif args.limit is not None:
            queue.limit_gpus = _number(args.limit)
        request_id = uuid.uuid4().hex
        if name in known:
            queue = client.planner.UpdateQueue(pb.UpdateQueueRequest(name=name, queue=queue, request_id=request_id))
        else:
            queue = client.planner.CreateQueue(pb.CreateQueueRequest(queue=queue, request_id=request_id))
    if args.json:
        print_json(queue)
    else:
        print_line(f"{queue.name}: {queue.guaranteed_gpus:g} GPUs guaranteed")
    return exits.OK


def add_delete_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", help="a queue that no job and no other queue names")


def delete_queue(args: argparse.Namespace) -> int:
    name = qualified(args.queue, "queues")
    with connect(args.server) as client:
        client.planner.DeleteQueue(pb.DeleteQueueRequest(name=name, request_id=uuid.uuid4().hex))
    return _deleted(name, as_json=args.json)


def add_reservations(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  switchgear reservations\n"
        "  switchgear reservations create firmware --nodes gpu-01,gpu-02 --start 22:00 --for 4h --reason 'new firmware'\n"
        "  switchgear reservations create demo --nodes gpu-03 --start +1h --for 2h --queues research\n"
        "  switchgear reservations delete demo"
    )


def reservations(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        found = client.planner.ListReservations(pb.ListReservationsRequest()).reservations
    if args.json:
        print_json(list(found))
        return exits.OK
    print_table(
        ("RESERVATION", "START", "END", "FOR", "NODES", "REASON"),
        (
            (
                last(one.name),
                local_time(one.start_time),
                local_time(one.end_time),
                ",".join(last(name) for name in (*one.queues, *one.jobs)) or "nobody",
                ",".join(last(node) for node in one.nodes),
                one.reason or "-",
            )
            for one in found
        ),
        "no reservations",
    )
    return exits.OK


def add_create_reservation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reservation", help="its name")
    parser.add_argument("--nodes", required=True, metavar="NODE,...", help="that are kept")
    parser.add_argument("--start", default="+0s", metavar="TIME", help="22:00, 2026-11-23T08:00 or +2h (default: now)")
    parser.add_argument("--for", dest="duration", required=True, metavar="TIME", help="how long: 90m, 4h, 2d")
    parser.add_argument("--queues", default="", metavar="QUEUE,...", help="whose jobs may be there")
    parser.add_argument(
        "--jobs", default="", metavar="JOB,...", help="that may be there; neither: nobody (maintenance)"
    )
    parser.add_argument("--reason", default="", help="shown wherever it is")


def create_reservation(args: argparse.Namespace) -> int:
    start = moment(args.start, datetime.now().astimezone())
    one = pb.Reservation(name=qualified(args.reservation, "reservations"), reason=args.reason)
    one.start_time.FromDatetime(start)
    one.end_time.FromNanoseconds(one.start_time.ToNanoseconds() + round(seconds(args.duration, "for") * 1e9))
    for field in ("nodes", "queues", "jobs"):
        getattr(one, field).extend(qualified(name, field) for name in getattr(args, field).split(",") if name)
    with connect(args.server) as client:
        made = client.planner.CreateReservation(
            pb.CreateReservationRequest(reservation=one, request_id=uuid.uuid4().hex)
        )
    if args.json:
        print_json(made)
    else:
        print_line(f"{made.name}: from {local_time(made.start_time)} to {local_time(made.end_time)}")
    return exits.OK


def add_delete_reservation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reservation", help="its name")


def delete_reservation(args: argparse.Namespace) -> int:
    name = qualified(args.reservation, "reservations")
    with connect(args.server) as client:
        client.planner.DeleteReservation(pb.DeleteReservationRequest(name=name, request_id=uuid.uuid4().hex))
    return _deleted(name, as_json=args.json)


def _deleted(name: str, *, as_json: bool) -> int:
    if as_json:
        print_json({"name": name})
    else:
        print_line(f"{name} is deleted")
    return exits.OK


def _number(given: str) -> float:
    try:
        return float(given)
    except ValueError:
        raise Invalid(f"--limit {given!r} must be a number, or none", Reason.BAD_FIELD, field="limit") from None
