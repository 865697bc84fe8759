"""What a command line of `switchgear run` asks for, checked: the text of its flags becomes values."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from switchgear.cli import devices
from switchgear.cli.scripts import require_program, require_script
from switchgear.core.errors import Invalid, Reason
from switchgear.core.rpc import split_address
from switchgear.launcher.logs import STREAMS, EchoRule, Streams
from switchgear.v1 import job_service_pb2 as jobs

MAX_RESTARTS_DEFAULT = 3
#: Beyond any cluster, so a slip of the finger is told at once.
RANKS_MAX = 100_000
RESTARTS_MAX = 1_000_000
SECONDS_MAX = 1e6
#: As of torchrun's c10d backend, and of its static one.
RENDEZVOUS_PORT, MASTER_PORT = 29400, 29500
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
SHUTDOWN_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SHUTDOWN_S = 30.0

_STREAM_CHOICES = {
    "0": frozenset[str](),
    "1": frozenset(STREAMS[:1]),
    "2": frozenset(STREAMS[1:]),
    "3": frozenset(STREAMS),
}
_BACKENDS = ("static", "c10d")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """How the nodes of a job without a server meet.

    run_id: what they name alike; empty: the job's name. node: name of this one; empty: its host's. hosts: whether this node is the one that keeps the job together; None: it is, when
    the address is of this machine. join_timeout_s: what may pass without the others; last_call_s: what more nodes get to
    come once there are enough.
    """

    host: str
    port: int
    run_id: str = ""
    node_rank: int | None = None
    hosts: bool | None = None
    local_address: str = ""
    node: str = ""
    join_timeout_s: float = 600.0
    last_call_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Stopping:
    """signals: those that end the job. grace_s: what its ranks get then."""

    signals: tuple[int, ...]
    grace_s: float


def nodes(args: argparse.Namespace) -> tuple[int, int]:
    """Fewest and most nodes. Raises Invalid."""
    low, colon, high = (args.nnodes or "1").partition(":")
    fewest, most = _count("nnodes", low), _count("nnodes", high if colon else low)
    if fewest > most:
        raise _bad("nnodes", f"{args.nnodes}: the fewest nodes come first, as in 2:4")
    return fewest, most


def ranks(args: argparse.Namespace) -> int | str:
    """Ranks a node, or one of `devices.WORDS`. Raises Invalid."""
    given: str = args.nproc_per_node or "1"
    if given in devices.WORDS:
        return given
    if not re.fullmatch(r"-?\d+", given):
        raise _bad("nproc_per_node", f"{given!r} must be a number, auto, gpu or cpu")
    return _count("nproc_per_node", given)


def rendezvous(args: argparse.Namespace) -> Rendezvous | None:
    """None when the flags name no place to meet. Raises Invalid."""
    if args.rdzv_backend not in (None, *_BACKENDS):
        raise _bad(
            "rdzv_backend",
            f"{args.rdzv_backend}: no other store is needed; write c10d, and one machine of the job as --rdzv-endpoint HOST:PORT",
        )
    if not any((args.rdzv_endpoint, args.rdzv_backend, args.master_addr, args.master_port, args.node_rank)):
        return None
    configuration = _pairs("rdzv_conf", args.rdzv_conf or "")
    if args.rdzv_endpoint:
        named, port = args.rdzv_endpoint, RENDEZVOUS_PORT
    else:
        named = args.master_addr or "127.0.0.1"
        port = _number("master_port", args.master_port or str(MASTER_PORT), int, 1, 65535)
    host, port = split_address(named) if re.search(r":\d+$", named) and named.count(":") != 7 else (named, port)
    address = configuration.get("is_host", "").lower()
    node_rank = None if args.node_rank is None else _number("node_rank", args.node_rank, int, 0, RANKS_MAX - 1)
    hosts = address in ("1", "true", "t", "yes", "y") if address else None if node_rank is None else node_rank == 0
    return Rendezvous(
        host=host,
        port=port,
        node_rank=node_rank,
        hosts=hosts,
        local_address=args.local_addr or "",
        join_timeout_s=_number("rdzv_conf", configuration.get("join_timeout", "600"), float, 1, SECONDS_MAX),
        last_call_s=_number("rdzv_conf", configuration.get("last_call_timeout", "30"), float, 0, SECONDS_MAX),
    )


def echo(args: argparse.Namespace) -> EchoRule:
    """Raises Invalid."""
    shown = None
    if args.local_ranks_filter:
        numbers = args.local_ranks_filter.split(",")
        shown = frozenset(_number("local_ranks_filter", number.strip(), int, 0, RANKS_MAX) for number in numbers)
    return EchoRule(shown, _streams("redirects", args.redirects or "0"), _streams("tee", args.tee or "0"))


def stopping(args: argparse.Namespace, environment: Mapping[str, str]) -> Stopping:
    """Raises Invalid."""
    names = [name.strip() for name in (args.signals_to_handle or SIGNALS).split(",")]
    for name in names:
        if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise _bad("signals_to_handle", f"{name}: no signal that can be handled; write names as in {SIGNALS}")
    seconds = args.shutdown_timeout or environment.get(SHUTDOWN_VARIABLE) or str(SHUTDOWN_S)
    grace_s = _number("shutdown_timeout", seconds, float, 0, SECONDS_MAX)
    return Stopping(tuple(signal.Signals[name].value for name in names), grace_s)


def job_spec(args: argparse.Namespace, nproc: int) -> jobs.JobSpec:
    """The job, as far as the command line tells it. Raises Invalid."""
    fewest, most = nodes(args)
    if args.module and args.no_python:
        raise _bad("no_python", "does not go with --module: leave one of them away")
    if args.checkpoint_dir and args.checkpoint_dir.exists() and not args.checkpoint_dir.is_dir():
        raise _bad("checkpoint_dir", f"{args.checkpoint_dir} is not a folder")
    no_python = args.no_python and not args.run_path
    if no_python:
        require_program(args.script)
    elif not args.module:
        require_script(args.script)
    spec = jobs.JobSpec(
        argv=[*(["-m"] if args.module else []), args.script, *args.arguments],
        environment=dict(_variable(given) for given in args.env),
        working_directory=str(Path.cwd()),
        python=args.python,
        nnodes=most,
        nnodes_min=fewest if fewest < most else 0,
        nproc_per_node=nproc,
        max_restarts=_number("max_restarts", args.max_restarts or str(MAX_RESTARTS_DEFAULT), int, 0, RESTARTS_MAX),
        checkpoint_directory=str(args.checkpoint_dir.absolute()) if args.checkpoint_dir else "",
        log_directory=str(Path(args.log_dir).absolute()) if args.log_dir else "",
        preload=args.preload,
        no_python=no_python,
        role=args.role or "",
        virtual_local_rank=args.virtual_local_rank,
        hang_seconds=_hang_seconds(args.hang_timeout),
    )
    if args.rdzv_id and args.rdzv_id != "none":
        spec.environment.setdefault("TORCHELASTIC_RUN_ID", args.rdzv_id)
    return spec


def require_log_folder(folder: Path) -> None:
    """Makes the folder of the ranks' logs on this machine. Raises Invalid when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"{folder}: {error.strerror}; name a folder in which this user can make files"
        raise _bad("log_dir", problem) from error


def _hang_seconds(given: str | None) -> float | None:
    if given is None:
        return None
    return 0.0 if given == "off" else _number("hang_timeout", given, float, 1, SECONDS_MAX, alternative=" or off")


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name:
        raise _bad("env", f"{given!r} names no variable; write --env NAME=VALUE")
    if not equals and name not in os.environ:
        raise _bad("env", f"{name}: it is not set in this shell; set it or write --env {name}=VALUE")
    return name, value if equals else os.environ[name]


def _streams(field: str, given: str) -> Streams:
    """`3`, or `0:3,1:1` by local rank."""
    try:
        if ":" not in given:
            return Streams(_STREAM_CHOICES[given])
        pairs = (pair.split(":") for pair in given.split(","))
        return Streams(by_local_rank={int(rank): _STREAM_CHOICES[choice] for rank, choice in pairs})
    except (KeyError, ValueError):
        raise _bad(field, f"{given!r} must be 0, 1, 2 or 3, also by local rank as in 0:1,1:3") from None


def _pairs(field: str, given: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given.split(",") if pair.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise _bad(field, f"{given!r} must be KEY=VALUE, with commas between several")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _count(field: str, given: str) -> int:
    value = _number(field, given, int, -math.inf, math.inf)
    if value < 1:
        raise _bad(field, "must be 1 or more")
    if value > RANKS_MAX:
        raise _bad(field, f"must be {RANKS_MAX} or less")
    return value


def _number(field: str, given: str, kind: Callable[[str], T], low: float, high: float, *, alternative: str = "") -> T:
    try:
        value = kind(given)
        if low <= value <= high:  # type: ignore[operator]  # int and float alone are asked for
            return value
    except ValueError:
        pass
    bounds = f" of {low:g} to {high:g}" if math.isfinite(high) else ""
    raise _bad(field, f"{given!r} must be a number{bounds}{alternative}")


def _bad(field: str, problem: str) -> Invalid:
    return Invalid(f"--{field.replace('_', '-')} {problem}", Reason.BAD_FIELD, field=field)
