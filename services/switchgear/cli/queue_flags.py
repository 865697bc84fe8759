"""The flags of `switchgear run` that the planner goes by, and what they say of the job."""

from __future__ import annotations

import argparse
import getpass
import math
import re
from datetime import datetime, timedelta

from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason
from switchgear.v1 import job_service_pb2 as jobs

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MIB = {"": 1.0, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024.0}

EXAMPLES = """on a cluster:
  switchgear run --queue research --priority 10 --time-limit 4h --nnodes 4 --nproc-per-node 8 --within leaf -- train.py
  switchgear run --gpu-model h100 --select pool=a,b --tolerate maintenance --cpus 32 --memory 256g -- train.py
  switchgear run --array 20 --gpu-share 0.5 --harvest -- sweep.py           (SWITCHGEAR_ARRAY_INDEX tells them apart)
  switchgear run --after prepare --not-before 22:00 --detach -- train.py"""
#: Attributes that stay as they are when nothing was asked for.
_DEFAULTS: dict[str, object] = {
    **dict.fromkeys(("queue", "key", "mig_profile", "time_limit", "not_before", "memory", "cpus", "gpu_share"), None),
    **dict.fromkeys(("account", "partition", "qos"), None),
    **{name: [] for name in ("gpu_model", "select", "tolerate", "near", "within", "after", "after_any")},
    "priority": 0,
    "hold": False,
    "harvest": False,
    "array": 0,
    "preemptible": None,
}


def add_queue_flags(parser: argparse.ArgumentParser) -> None:
    """All are for jobs that a server places."""
    group = parser.add_argument_group("on a cluster: its turn and its place")
    group.add_argument("--queue", help="queue whose share it uses; `switchgear queues` lists them")
    group.add_argument("--priority", type=int, default=0, help="higher goes first, -1000 to 1000 (default: 0)")
    group.add_argument("--key", help="name by which its run time is learned (default: that of the script)")
    group.add_argument("--account", help="to whom its GPU time is charged; `switchgear goodput --by account`")
    group.add_argument("--partition", metavar="NAMES", help="where Slurm is to run it; several with commas")
    group.add_argument("--qos", help="quality of service in Slurm")
    group.add_argument("--time-limit", metavar="TIME", help="it is ended then: 90m, 4h, 2d")
    group.add_argument("--not-before", metavar="TIME", help="earliest start: 22:00, 2026-11-23T08:00, or +2h")
    group.add_argument("--hold", action="store_true", help="stay in the queue until `switchgear jobs release`")
    _add_list(group, "--after", "JOB", "start once this job has succeeded")
    _add_list(group, "--after-any", "JOB", "start once this job has ended, however")
    group.add_argument("--array", type=int, default=0, metavar="N", help="submit N of them, told apart by an index")
    group.add_argument(
        "--preemptible",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="others of a higher claim may take its GPUs at a checkpoint (default: yes)",
    )
    group.add_argument("--harvest", action="store_true", help="run on what nobody else wants, and leave first")
    _add_list(group, "--gpu-model", "NAME", "a model that will do, or a part of its name, such as h100")
    group.add_argument("--gpu-share", type=float, metavar="SHARE", help="a part of one GPU, such as 0.5")
    group.add_argument("--mig-profile", metavar="PROFILE", help="a MIG instance, such as 1g.10gb")
    group.add_argument("--cpus", type=float, metavar="N", help="CPUs that each node must have left")
    group.add_argument("--memory", metavar="SIZE", help="memory that each node must have left: 256g, 512m")
    _add_list(group, "--select", "KEY=V1,V2", "only nodes with one of these values of a label; KEY!=V1,V2: with none")
    _add_list(group, "--tolerate", "TAINT", "nodes with this taint will do")
    _add_list(group, "--within", "LEVEL", "all nodes in one domain of this level (spine, leaf, nvlink, ...)")
    _add_list(group, "--near", "LEVEL", "the same, as near as it gets")


def asked_for(args: argparse.Namespace) -> list[str]:
    """Those of the flags that were given."""
    return [
        f"--{name.replace('_', '-')}" for name, default in _DEFAULTS.items() if getattr(args, name, default) != default
    ]


def apply(args: argparse.Namespace, spec: jobs.JobSpec, now: datetime) -> None:
    """Writes what the flags say into the job. now: with its time zone. Raises Invalid."""
    spec.user = getpass.getuser()
    spec.queue = qualified(args.queue, "queues") if args.queue else ""
    spec.key = args.key or ""
    spec.account, spec.partition, spec.qos = args.account or "", args.partition or "", args.qos or ""
    spec.priority = args.priority
    spec.hold, spec.harvest = args.hold, args.harvest
    spec.gpu_models.extend(args.gpu_model)
    spec.tolerations.extend(args.tolerate)
    spec.mig_profile = args.mig_profile or ""
    if args.preemptible is not None:
        spec.preemptible = args.preemptible
    if args.time_limit:
        spec.time_limit_seconds = seconds(args.time_limit, "time_limit")
    if args.not_before:
        spec.not_before.FromDatetime(moment(args.not_before, now))
    if args.gpu_share is not None:
        if not 0 < args.gpu_share < 1:
            raise _bad("gpu_share", f"{args.gpu_share:g} must be more than 0 and less than 1")
        spec.gpu_milli = max(1, min(999, round(1000 * args.gpu_share)))
    if args.cpus is not None:
        if not (math.isfinite(args.cpus) and args.cpus > 0):
            raise _bad("cpus", f"{args.cpus:g} must be more than 0")
        spec.cpu_milli = round(1000 * args.cpus)
    if args.memory:
        spec.memory_mib = _mib(args.memory)
    spec.node_selectors.extend(_selector(given) for given in args.select)
    for level in args.within:
        spec.topology.add(level=level, required=True)
    for level in args.near:
        spec.topology.add(level=level)
    for job in args.after:
        spec.after.add(job=qualified(job, "jobs"))
    for job in args.after_any:
        spec.after.add(job=qualified(job, "jobs"), any_end=True)


def seconds(given: str, field: str) -> float:
    """Of `90`, `90s`, `15m`, `4h` or `2d`. Raises Invalid."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", given)
    if not found:
        raise _bad(field, f"{given!r} must be a time such as 90s, 15m, 4h or 2d")
    return float(found[1]) * _UNITS_S[found[2] or "s"]


def moment(given: str, now: datetime) -> datetime:
    """Of `+2h`, `22:00` (the next one) or `2026-11-23T08:00`, in the zone of `now` where none is said. Raises Invalid."""
    if given.startswith("+"):
        return now + timedelta(seconds=seconds(given[1:], "not_before"))
    try:
        if re.fullmatch(r"\d{1,2}:\d\d", given):
            hour, minute = (int(part) for part in given.split(":"))
            today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return today if today > now else today + timedelta(days=1)
        at = datetime.fromisoformat(given)
    except ValueError:
        raise _bad("not_before", f"{given!r} must be a time such as 22:00, 2026-11-23T08:00 or +2h") from None
    return at if at.tzinfo else at.replace(tzinfo=now.tzinfo)


def _mib(given: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mgt]?)(?:i?b)?", given.lower())
    if not found:
        raise _bad("memory", f"{given!r} must be a size such as 512m or 256g")
    return math.ceil(float(found[1]) * _MIB[found[2]])


def _selector(given: str) -> jobs.NodeSelector:
    key, equals, values = given.partition("=")
    if not (key.removesuffix("!") and equals):
        raise _bad("select", f"{given!r} must be KEY=VALUE or KEY!=VALUE, with commas between several values")
    return jobs.NodeSelector(key=key.removesuffix("!"), values=values.split(","), excludes=key.endswith("!"))


def _add_list(group: argparse._ArgumentGroup, flag: str, metavar: str, help_text: str) -> None:
    group.add_argument(
        flag, action="append", default=[], metavar=metavar, help=f"{help_text}; may be given several times"
    )


def _bad(field: str, problem: str) -> Invalid:
    return Invalid(f"--{field.replace('_', '-')} {problem}", Reason.BAD_FIELD, field=field)
