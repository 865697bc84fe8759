"""`switchgear services`: inference services and their replicas: list, show, create, scale, update, delete; and what their policies decide."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from switchgear.cli import exits, service_policies
from switchgear.cli.client import connect, whole_list
from switchgear.cli.output import last, local_time, print_json, print_line, print_table
from switchgear.cli.scripts import require_script
from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason
from switchgear.v1 import autoscaler_service_pb2 as pb

COLLECTION = "inferenceServices"
#: Far beyond any fleet, and it fits the contract's numbers.
COUNT_MAX = 1_000_000
EPILOG = """examples:
  switchgear services
  switchgear services chat
  switchgear services create chat --min 0 --max 2 --tokens-per-second 40 -- serve_gpt.py --checkpoint /data/gpt
  switchgear services create chat --max 8 --slo-ttft 1 --slo-tpot 0.05 --gpu-budget 12 --shadow hpa:8 -- serve.py
  switchgear services scale chat --min 1 --max 4
  switchgear services update chat -- serve_gpt.py --checkpoint /data/gpt-2     (replaced one by one)
  switchgear services update chat --slo-ttft 1 --scale-down-delay 300          (nothing is replaced)
  switchgear services update chat --queue inference --priority 100             (may borrow GPUs of training)
  switchgear services decisions chat --follow
  switchgear services decisions chat --json > chat.jsonl
  switchgear services replay chat.jsonl --policy hpa:8
  switchgear services shadow chat keda --target 10
  switchgear services delete chat"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EPILOG}\n\n{exits.TABLE}"
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="[NAME | create NAME | scale NAME | update NAME | delete NAME | decisions NAME | replay FILE | shadow NAME [POLICY]]",
        help="one service with its replicas, or what to do with it (`switchgear services create --help` says how)",
    )


def main(args: argparse.Namespace) -> int:
    words: list[str] = args.words
    end = words.index("--") if "--" in words else len(words)
    action = words[0] if words and words[0] in _ACTIONS else ""
    add, run = _ACTIONS.get(action, (_add_show, _show))
    parser = argparse.ArgumentParser(
        prog=" ".join(["switchgear services", action]).rstrip(),
        description=run.__doc__,
        # What stands before the name holds unless it is said again behind it.
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="control plane")
    parser.add_argument("--json", action="store_true", help="print canonical JSON")
    add(parser)
    given = parser.parse_args(words[bool(action) : end], args)
    given.program = words[end + 1 :]
    if given.program and action not in ("create", "update"):
        raise Invalid("only `services create` and `update` take a program behind --", Reason.BAD_FIELD, field="program")
    return run(given)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="one service, with its replicas")


def _show(args: argparse.Namespace) -> int:
    """List inference services, or show one with its replicas."""
    with connect(args.server) as client:
        if args.name:
            name = qualified(args.name, COLLECTION)
            service = client.autoscaler.GetInferenceService(pb.GetInferenceServiceRequest(name=name))
            replicas = whole_list(client.autoscaler.ListReplicas, pb.ListReplicasRequest(parent=name), "replicas")
            return _print_one(service, replicas, as_json=args.json)
        request = pb.ListInferenceServicesRequest()
        found = whole_list(client.autoscaler.ListInferenceServices, request, "inference_services")
    if args.json:
        print_json(found)
        return exits.OK
    print_table(
        ("SERVICE", "READY", "DESIRED", "BOUNDS", "MESSAGE"),
        (
            (
                last(service.name),
                service.ready_replicas,
                service.desired_replicas,
                f"{service.spec.min_replicas}-{service.spec.max_replicas}",
                service.message or "-",
            )
            for service in found
        ),
        "no inference services: make one with `switchgear services create NAME -- serve.py`",
    )
    return exits.OK


def _print_one(service: pb.InferenceService, replicas: list[pb.Replica], *, as_json: bool) -> int:
    if as_json:
        print_json([service, *replicas])
        return exits.OK
    print_line(_line(service))
    if service.message:
        print_line(f"{service.message} (since {local_time(service.decide_time)})")
    for line in (*_promise(service), *_shares(service)):
        print_line(line)
    print_line(f"command: {' '.join(service.spec.argv)}")
    print()
    print_table(
        ("REPLICA", "STATE", "NODE", "ADDRESS", "RUNNING", "WAITING", "CREATED", "MESSAGE"),
        (
            (
                last(replica.name),
                pb.Replica.State.Name(replica.state),
                last(replica.node) or "-",
                replica.address or "-",
                replica.running_requests if replica.HasField("running_requests") else "-",
                replica.waiting_requests if replica.HasField("waiting_requests") else "-",
                local_time(replica.create_time),
                replica.message or "-",
            )
            for replica in replicas
        ),
        "no replicas",
    )
    return exits.OK


def _promise(service: pb.InferenceService) -> list[str]:
    lines, counted = [], service.kept_requests + service.broken_requests
    if counted:
        share = service.kept_requests / counted
        lines.append(f"promise: kept by {share:.2%} of {counted} requests (wanted: {service.spec.slo.objective:.2%})")
    if service.blind:
        lines.append(f"blind: {service.blind}")
    if service.HasField("shadow"):
        shadow = service.shadow
        lines.append(
            f"shadow {shadow.policy}: would have {shadow.replicas} ({shadow.message}); "
            f"{shadow.replica_seconds / 3600:.2f} replica-hours against {shadow.live_replica_seconds / 3600:.2f} "
            f"since {local_time(shadow.start_time)}"
        )
    return lines


def _shares(service: pb.InferenceService) -> list[str]:
    lines = []
    if service.outdated_replicas:
        left = service.outdated_replicas
        lines.append(f"update: {left} replica{'s are' if left != 1 else ' is'} still to be replaced")
    if service.spec.queue or service.spec.priority:
        lines.append(f"queue: {last(service.spec.queue) or 'none'}, priority {service.spec.priority}")
    lines.extend(
        f"borrows {loan.gpus} GPU{'s' * (loan.gpus != 1)} of {loan.lender} since {local_time(loan.since)} for replica {last(loan.replica)}; "
        f"back when fewer than {service.desired_replicas} replica{'s do' if service.desired_replicas != 1 else ' does'}"
        for loan in service.loans
    )
    return lines


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= COUNT_MAX:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {COUNT_MAX}, not {text}")
    return number


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s NAME [options] -- serve.py ARGS"
    parser.add_argument("name", help="name of the service; clients give it as `model`")
    parser.add_argument(
        "--min", type=_count, default=0, metavar="N", help="least replicas (default: 0: none while idle)"
    )
    parser.add_argument("--max", type=_count, default=1, metavar="N", help="most replicas (default: 1)")
    parser.add_argument("--gpus-per-replica", type=_count, default=1, metavar="K", help="(default: 1)")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable for the replicas"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of the replicas (default: the one of this command)"
    )
    for flag, text in (
        ("--tokens-per-second", "work that one replica does, until it has been measured (default: 100)"),
        (
            "--cold-start",
            "seconds from asking for a replica to its answers, until that has been measured (default: unknown)",
        ),
        (
            "--prefill-tokens-per-second",
            "prompt tokens that an idle replica reads (default: unknown, they cost nothing)",
        ),
        ("--scale-down-delay", "seconds for which less must suffice (default: as the policy has it)"),
        ("--drain-timeout", "seconds that a replica gets to finish its requests (default: 60)"),
        ("--latency-target", "seconds within which a request is on time (default: 5)"),
    ):
        parser.add_argument(flag, type=float, default=0.0, metavar="X", help=text)
    _add_promise(parser, defaults=True)
    parser.add_argument("--gpu-budget", type=_count, default=0, metavar="N", help="GPUs of all replicas together")
    parser.add_argument(
        "--shadow", default="", metavar="NAME[:TARGET]", help="policy that decides beside, without effect"
    )
    _add_claim(parser)


#: By the field of the promise: flag and what it means.
_PROMISE = {
    "objective": ("--slo-objective", "fraction of requests that must keep the promise (default: 0.99)"),
    "ttft_seconds": ("--slo-ttft", "seconds to the first token, 0: no such limit (default: 2)"),
    "ttft_prefill_factor": (
        "--slo-prefill-factor",
        "plus this times what the prompt takes on an idle replica (default: 3)",
    ),
    "tpot_seconds": ("--slo-tpot", "seconds more for each generated token, 0: no such limit (default: 0.1)"),
    "e2e_seconds": ("--slo-e2e", "seconds to the whole answer (default: --latency-target where given)"),
    "wait_seconds": (
        "--slo-wait",
        "seconds until a replica works on it; for models without tokens (default: no such limit)",
    ),
}


def _add_promise(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    for field, (flag, text) in _PROMISE.items():
        told = text if defaults else text.partition(" (default")[0]
        parser.add_argument(flag, dest=field, type=float, default=None, metavar="X", help=told)


def _promised(args: argparse.Namespace) -> pb.ServiceLevelObjective:
    """What was said of it, and no more."""
    return pb.ServiceLevelObjective(**{field: getattr(args, field) for field in _PROMISE})


def _add_claim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", default=None, help="queue whose share the replicas use (default: none)")
    parser.add_argument(
        "--priority", type=int, default=None, help="higher takes GPUs of lower ones at a checkpoint (default: 0)"
    )
    parser.add_argument(
        "--preemptible",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="others of a higher claim may take the GPUs of replicas (default: no)",
    )


def _claim(args: argparse.Namespace, spec: pb.InferenceServiceSpec) -> None:
    if args.queue is not None:
        spec.queue = qualified(args.queue, "queues") if args.queue else ""
    if args.priority is not None:
        spec.priority = args.priority
    if args.preemptible is not None:
        spec.preemptible = args.preemptible


def _create(args: argparse.Namespace) -> int:
    """Create an inference service: the program behind -- runs in each of its replicas."""
    if not args.program:
        raise Invalid(
            "the program is missing: write `switchgear services create NAME -- serve.py ARGS`",
            Reason.BAD_FIELD,
            field="argv",
        )
    require_script(args.program[0])
    spec = pb.InferenceServiceSpec(
        argv=args.program,
        working_directory=str(Path.cwd()),
        environment=dict(_variable(given) for given in args.env),
        python=args.python,
        gpus_per_replica=args.gpus_per_replica,
        min_replicas=args.min,
        max_replicas=args.max,
        tokens_per_second=args.tokens_per_second,
        scale_down_delay_seconds=args.scale_down_delay,
        drain_timeout_seconds=args.drain_timeout,
        latency_target_seconds=args.latency_target,
        slo=_promised(args),
        gpu_budget=args.gpu_budget,
        cold_start_seconds=args.cold_start,
        prefill_tokens_per_second=args.prefill_tokens_per_second,
        shadow_policy=args.shadow,
    )
    _claim(args, spec)
    request = pb.CreateInferenceServiceRequest(
        inference_service=pb.InferenceService(spec=spec), service_id=last(args.name), request_id=uuid.uuid4().hex
    )
    with connect(args.server) as client:
        return _print_changed(client.autoscaler.CreateInferenceService(request), as_json=args.json)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the service")
    parser.add_argument("--min", type=_count, default=None, metavar="N", help="least replicas (default: as it is)")
    parser.add_argument("--max", type=_count, default=None, metavar="N", help="most replicas (default: as it is)")


def _scale(args: argparse.Namespace) -> int:
    """Set the bounds between which the policy chooses; equal bounds fix the number."""
    name = qualified(args.name, COLLECTION)
    with connect(args.server) as client:
        service = client.autoscaler.GetInferenceService(pb.GetInferenceServiceRequest(name=name))
        request = pb.ScaleInferenceServiceRequest(
            name=name,
            min_replicas=service.spec.min_replicas if args.min is None else args.min,
            max_replicas=service.spec.max_replicas if args.max is None else args.max,
            request_id=uuid.uuid4().hex,
            etag=service.etag,
        )
        return _print_changed(client.autoscaler.ScaleInferenceService(request), as_json=args.json)


def _add_update(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s NAME [options] [-- serve.py ARGS]"
    parser.add_argument("name", help="the service; what is not given stays as it is")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable as well")
    parser.add_argument("--python", default=None, help="interpreter of the replicas")
    parser.add_argument("--gpus-per-replica", type=_count, default=None, metavar="K")
    parser.add_argument("--gpu-budget", type=_count, default=None, metavar="N", help="0: max_replicas alone limits")
    for flag, text in (
        ("--cold-start", "seconds from asking for a replica to its answers, until measured; 0: unknown"),
        ("--scale-down-delay", "seconds for which less must suffice; 0: as the policy has it"),
        ("--drain-timeout", "seconds that a replica gets to finish its requests; 0: 60"),
    ):
        parser.add_argument(flag, type=float, default=None, metavar="X", help=text)
    _add_promise(parser, defaults=False)
    _add_claim(parser)


def _update(args: argparse.Namespace) -> int:
    """Change what the replicas run, or the promise. Replicas that would be made otherwise are replaced one by one, each new one before an old
    one where a GPU is to be had; what is not given stays as it is."""
    name = qualified(args.name, COLLECTION)
    if args.program:
        require_script(args.program[0])
    with connect(args.server) as client:
        service = client.autoscaler.GetInferenceService(pb.GetInferenceServiceRequest(name=name))
        spec = service.spec
        if args.program:
            spec.argv[:] = args.program
            spec.working_directory = str(Path.cwd())
        spec.environment.update(_variable(given) for given in args.env)
        for field, given in (
            ("python", args.python),
            ("gpus_per_replica", args.gpus_per_replica),
            ("gpu_budget", args.gpu_budget),
            ("cold_start_seconds", args.cold_start),
            ("scale_down_delay_seconds", args.scale_down_delay),
            ("drain_timeout_seconds", args.drain_timeout),
        ):
            if given is not None:
                setattr(spec, field, given)
        spec.slo.MergeFrom(_promised(args))
        _claim(args, spec)
        request = pb.UpdateInferenceServiceRequest(name=name, spec=spec, request_id=uuid.uuid4().hex, etag=service.etag)
        return _print_changed(client.autoscaler.UpdateInferenceService(request), as_json=args.json)


def _add_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the service")


def _delete(args: argparse.Namespace) -> int:
    """Drain all replicas of a service; it is gone when the last has ended."""
    request = pb.DeleteInferenceServiceRequest(name=qualified(args.name, COLLECTION), request_id=uuid.uuid4().hex)
    with connect(args.server) as client:
        return _print_changed(client.autoscaler.DeleteInferenceService(request), as_json=args.json)


def _print_changed(service: pb.InferenceService, *, as_json: bool) -> int:
    if as_json:
        print_json(service)
    else:
        print_line(_line(service))
    return exits.OK


def _line(service: pb.InferenceService) -> str:
    bounds = f"{service.spec.min_replicas} to {service.spec.max_replicas}"
    if service.deleting:
        return f"{service.name}: being deleted, {service.ready_replicas} ready"
    advised = f", {service.advised_replicas} advised" if service.HasField("advised_replicas") else ""
    return f"{service.name}: {service.ready_replicas} ready, {service.desired_replicas} desired of {bounds}{advised}"


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise Invalid(f"--env {given!r} sets no variable; write --env NAME=VALUE", Reason.BAD_FIELD, field="env")
    return name, value


_ACTIONS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "create": (_add_create, _create),
    "scale": (_add_scale, _scale),
    "update": (_add_update, _update),
    "delete": (_add_delete, _delete),
    "decisions": (service_policies.add_decisions, service_policies.decisions),
    "replay": (service_policies.add_replay, service_policies.replayed),
    "shadow": (service_policies.add_shadow, service_policies.shadow),
}
