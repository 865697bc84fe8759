"""The `switchgear` command."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version

from switchgear.cli import exits
from switchgear.core.errors import Reason, SwitchgearError
from switchgear.core.rpc import to_error_dict
from switchgear.core.text import printable

EXAMPLES = """examples:
  switchgear run --standalone --nproc-per-node 2 -- train.py --epochs 3
  switchgear up --sim-gpus 4
  switchgear run --nproc-per-node 2 --checkpoint-dir /data/llama -- train.py
  switchgear jobs llama
  switchgear logs llama --follow
  switchgear explain llama
  switchgear incidents
  switchgear goodput llama
  switchgear services create chat --max 2 -- serve_gpt.py --checkpoint checkpoints
  switchgear top
  journalctl -k | switchgear agent classify-log
  switchgear demo
"""

#: name: (module, function that adds arguments or "", function that runs, help)
_COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "run": (
        "switchgear.cli.run",
        "add_arguments",
        "main",
        "run a training script: here without a server, or on the cluster",
    ),
    "up": ("switchgear.cli.up", "add_arguments", "main", "run the whole control plane on this machine"),
    "serve": ("switchgear.cli.serve", "add_arguments", "main", "run one service of the control plane, on PostgreSQL"),
    "demo": (
        "switchgear.cli.demo.main",
        "add_arguments",
        "main",
        "train on simulated nodes, break it, recover it; serve it under load; prove it",
    ),
    "router": ("switchgear.cli.router", "add_arguments", "main", "run the router of inference requests by itself"),
    "agent": ("switchgear.agent.main", "add_arguments", "main", "run the node agent"),
    "agent classify-log": (
        "switchgear.agent.classify",
        "add_arguments",
        "main",
        "what each line of a kernel log says, as JSON",
    ),
    "doctor": (
        "switchgear.cli.doctor",
        "add_arguments",
        "main",
        "what the agent can and cannot see on this node, and what helps",
    ),
    "slurm health": (
        "switchgear.cli.slurm_health",
        "add_arguments",
        "main",
        "whether Slurm may start jobs on this node, and drain it when not",
    ),
    "nodes": ("switchgear.cli.show", "add_nodes", "nodes", "list nodes, or show one with its telemetry"),
    "jobs": ("switchgear.cli.show", "add_jobs", "jobs_command", "list jobs, or show one with its attempts"),
    "jobs hold": ("switchgear.cli.queueing", "add_hold", "hold", "keep a job in the queue"),
    "jobs release": ("switchgear.cli.queueing", "add_release", "release", "let a job that is held start"),
    "jobs requeue": ("switchgear.cli.queueing", "add_requeue", "requeue", "stop a job and put it back into the queue"),
    "nodes label": ("switchgear.cli.queueing", "add_label", "label", "set what jobs select a node by"),
    "nodes taint": ("switchgear.cli.queueing", "add_taint", "taint", "keep jobs off a node that do not tolerate it"),
    "queues": ("switchgear.cli.queues", "add_queues", "queues", "list queues with what they are guaranteed and use"),
    "queues set": ("switchgear.cli.queues", "add_set_queue", "set_queue", "make or change a queue"),
    "queues delete": ("switchgear.cli.queues", "add_delete_queue", "delete_queue", "delete a queue"),
    "reservations": (
        "switchgear.cli.queues",
        "add_reservations",
        "reservations",
        "list nodes that are kept for a time",
    ),
    "reservations create": (
        "switchgear.cli.queues",
        "add_create_reservation",
        "create_reservation",
        "keep nodes for some jobs, or for maintenance",
    ),
    "reservations delete": (
        "switchgear.cli.queues",
        "add_delete_reservation",
        "delete_reservation",
        "end a reservation",
    ),
    "incidents": ("switchgear.cli.show", "add_incidents", "incidents", "list incidents, or show one with its timeline"),
    "goodput": (
        "switchgear.cli.goodput",
        "add_arguments",
        "main",
        "show where the GPU time of a job went, or what faults cost all jobs",
    ),
    "checkpoints": ("switchgear.cli.show", "add_checkpoints", "checkpoints", "list the checkpoints of a job"),
    "query": ("switchgear.cli.query", "add_arguments", "main", "show recent values of any series on all nodes"),
    "replay": (
        "switchgear.cli.replay",
        "add_arguments",
        "main",
        "what today's detectors make of what a collector recorded",
    ),
    "signals": ("switchgear.cli.show", "add_signals", "signals_command", "list what the detectors found"),
    "health": ("switchgear.cli.health", "add_arguments", "main", "list what is wrong with nodes now, or show one"),
    "health clear": ("switchgear.cli.health", "add_clear", "clear", "say that what is open on a node or a GPU is over"),
    "top": (
        "switchgear.cli.top",
        "add_arguments",
        "main",
        "the cluster on one screen: nodes, jobs, incidents, replicas",
    ),
    "services": (
        "switchgear.cli.services",
        "add_arguments",
        "main",
        "list inference services, show one with its replicas, create, scale or delete one",
    ),
    "inference probe": (
        "switchgear.cli.inference.probe",
        "add_arguments",
        "main",
        "what an inference server tells of itself, what is missing for autoscaling, and what that costs",
    ),
    "inference scale": (
        "switchgear.cli.inference.scale",
        "add_arguments",
        "main",
        "size services that others run, and publish it for an HPA or KEDA",
    ),
    "logs": ("switchgear.cli.logs", "add_arguments", "main", "show the logs of a job's ranks"),
    "cancel": ("switchgear.cli.act", "add_cancel", "cancel", "end a job"),
    "cordon": ("switchgear.cli.act", "add_cordon", "cordon", "take a node out of placement"),
    "uncordon": ("switchgear.cli.act", "add_uncordon", "uncordon", "put a node back into placement"),
    "policies": ("switchgear.cli.policies", "add_arguments", "main", "list which policies may act, or change one"),
    "init": (
        "switchgear.cli.init",
        "add_arguments",
        "main",
        "make certificates and the first token: nothing is open to all",
    ),
    "tokens": ("switchgear.cli.access", "add_tokens", "tokens", "list the tokens of people, make one or revoke one"),
    "join-token": (
        "switchgear.cli.access",
        "add_join_token",
        "join_token",
        "make a token with which one node joins, once",
    ),
    "audit": ("switchgear.cli.access", "add_audit", "audit", "list who changed what, and who was refused"),
    "inject": ("switchgear.cli.act", "add_inject", "inject", "let a simulated GPU report a fault"),
    "explain": (
        "switchgear.cli.explain",
        "add_arguments",
        "main",
        "why a job waits, what would start it now and when it starts otherwise; or why it is where it is",
    ),
    "simulate placement": (
        "switchgear.cli.simulate.placement",
        "add_arguments",
        "main",
        "how full nodes get with pods that arrive, by packing policy",
    ),
    "simulate whatif": (
        "switchgear.cli.simulate.whatif",
        "add_arguments",
        "main",
        "what the planner would decide now if things were different",
    ),
    "simulate defragment": (
        "switchgear.cli.simulate.defragment",
        "add_arguments",
        "main",
        "which running jobs could be elsewhere so that others start, with gain and cost; nothing is moved",
    ),
    "simulate snapshot": (
        "switchgear.cli.simulate.snapshot",
        "add_arguments",
        "main",
        "print what the planner goes by now, as JSON, to simulate on it elsewhere",
    ),
    "simulate queue": (
        "switchgear.cli.simulate.queue",
        "add_arguments",
        "main",
        "how long the jobs of a trace would have waited, under the planner and under published policies",
    ),
    "simulate autoscaling": (
        "switchgear.cli.simulate.autoscaling",
        "add_arguments",
        "main",
        "what an autoscaling policy would have done on recorded requests, and what it would have cost",
    ),
    "simulate replay": (
        "switchgear.cli.simulate.replay",
        "add_arguments",
        "main",
        "whether the planner decides today as the scheduler's log says it did",
    ),
    "sim fleet": (
        "switchgear.sim.fleet.main",
        "add_arguments",
        "main",
        "stream to a collector as many simulated nodes, with faults",
    ),
}

#: Modules of commands that ask a control plane and print what it answers.
_SHOWS = (
    "switchgear.cli.show",
    "switchgear.cli.goodput",
    "switchgear.cli.query",
    "switchgear.cli.health",
    "switchgear.cli.act",
    "switchgear.cli.queueing",
    "switchgear.cli.queues",
    "switchgear.cli.explain",
    "switchgear.cli.simulate.whatif",
    "switchgear.cli.simulate.defragment",
    "switchgear.cli.simulate.snapshot",
    "switchgear.cli.policies",
    "switchgear.cli.services",
    "switchgear.cli.access",
)


#: They live on, and so would a span around them; what they do for others has spans of its own.
_PROCESSES = frozenset({"up", "serve", "agent", "router", "demo", "top", "inference scale"})


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The command line. Only the arguments of the `chosen` command are added, so that the others' modules stay unread."""
    top = argparse.ArgumentParser(
        prog="switchgear",
        description="Control plane for GPU clusters: telemetry, recovery of distributed training, autoscaled inference.",
        epilog=f"{EXAMPLES}\n{exits.TABLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"switchgear {version('switchgear')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, add, _, help_text) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=help_text, description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name != chosen:
            continue
        command.add_argument(
            "--log-level",
            default="warning",
            choices=("debug", "info", "warning", "error"),
            help="of our own log on stderr",
        )
        if module in _SHOWS or module in ("switchgear.cli.logs", "switchgear.cli.run", "switchgear.cli.top"):
            command.add_argument(
                "--server",
                metavar="HOST:PORT",
                help="control plane (default: $SWITCHGEAR_SERVER, or the one of this machine)",
            )
        if module in _SHOWS:
            command.add_argument("--json", action="store_true", help="print canonical JSON")
        getattr(import_module(module), add)(command)
    return top


def _parts_of(word: str) -> dict[str, str]:
    """Commands of two words that begin with this one: the second word and the help of each."""
    return {
        name.partition(" ")[2]: help_text for name, (*_, help_text) in _COMMANDS.items() if name.startswith(f"{word} ")
    }


def _parts_parser(word: str, parts: Mapping[str, str]) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog=f"switchgear {word}")
    commands = found.add_subparsers(dest="command", required=True, metavar="|".join(parts))
    for name, help_text in parts.items():
        commands.add_parser(name, help=help_text)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if " ".join(given[:2]) in _COMMANDS:
        given[:2] = [" ".join(given[:2])]
    chosen = next((word for word in given if not word.startswith("-")), None)
    if given and chosen == given[0] and chosen not in _COMMANDS and (parts := _parts_of(chosen)):
        _parts_parser(chosen, parts).parse_args(given[1:])  # shows its help, or says which commands there are
        return exits.USAGE
    try:
        args = parser(chosen).parse_args(given)
        module, _, function, _ = _COMMANDS[args.command]
        run: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
        from switchgear.core import log, trace

        component = getattr(args, "service", args.command) if args.command in _PROCESSES else "cli"
        log.configure(args.log_level, component=component)
        trace.configure(component)
        try:
            with trace.span(f"switchgear {args.command}") if component == "cli" else nullcontext():
                return run(args)
        except ExceptionGroup as group:  # one of the tasks of a service ended the others
            raise _first(group) from group
    except SwitchgearError as error:
        if "--json" in given and chosen not in ("run", "demo"):  # behind `run` stand the script's own options
            print(json.dumps({"error": to_error_dict(error)}))
        print(f"switchgear: {printable(error.message)}", file=sys.stderr)
        return exits.exit_code(error.reason)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "switchgear":
            raise
        print(
            f"switchgear: this command needs {error.name}, which is not installed; install it with pip install 'switchgear[server]'",
            file=sys.stderr,
        )
        return exits.exit_code(Reason.MISSING_EXTRA)
    except UnicodeEncodeError as error:
        print(
            f"switchgear: {error.object!a} is not UTF-8; only such names and arguments can be handed on",
            file=sys.stderr,
        )
        return exits.USAGE
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # `switchgear jobs | head`: nobody reads any more, which is no error.
        sys.stderr.close()
        return exits.OK
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        what = error.strerror or str(error)
        # What the command line names is the caller's to name anew; what it does not is where we keep things.
        named = error.filename is not None and str(error.filename) in given
        remedy = "name another file" if named else "choose another place (SWITCHGEAR_STATE_DIR, --state-dir, --log-dir)"
        print(
            f"switchgear: cannot use{where}: {what}; mend that or {remedy}",
            file=sys.stderr,
        )
        return exits.UNUSABLE_PLACE
    except Exception:
        logging.getLogger(__name__).exception("unexpected error; please report it with the lines above")
        return exits.INTERNAL


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
