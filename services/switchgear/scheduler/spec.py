"""What a job must look like before anything is done about it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.scheduler.checks import bad, check_count, check_text, too_large
from switchgear.scheduler.model import JobSpec, Workload
from switchgear.scheduler.placement import Request, could_ever_fit, counted
from switchgear.scheduler.wishes import wishes_from_proto
from switchgear.v1 import job_service_pb2 as job_pb

#: Together with a start command they stay far below the 4 MiB of a message.
ARGV_ITEMS_MAX = 1000
ARGV_BYTES_MAX = 64 * 1024
ENVIRONMENT_BYTES_MAX = 64 * 1024
#: PATH_MAX of Linux.
PATH_BYTES_MAX = 4096
#: A job that fails more often than this is broken.
RESTARTS_MAX = 1000
#: `nnodes` and `nproc_per_node`: the largest clusters known have some ten thousand nodes.
GANG_MAX = 100_000
#: A project has a few modules that are worth it; each may bring many more.
PRELOAD_MAX = 64
MODULE_LENGTH_MAX = 200
ROLE_LENGTH_MAX = 100
#: A step that takes longer than a day is none.
HANG_S_MAX = 24 * 3600.0
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def spec_from_proto(spec: job_pb.JobSpec) -> JobSpec:
    """The specification, checked. Raises Invalid (BAD_FIELD, LIMIT_EXCEEDED) that names the field."""
    _check_argv(spec.argv)
    _check_environment(dict(spec.environment))
    for field in ("working_directory", "checkpoint_directory", "log_directory"):
        _check_folder(field, getattr(spec, field), required=field == "working_directory")
    check_text("python", spec.python, PATH_BYTES_MAX)
    for field, low, high in (
        ("nnodes", 1, GANG_MAX),
        ("nproc_per_node", 1, GANG_MAX),
        ("max_restarts", 0, RESTARTS_MAX),
    ):
        check_count(field, getattr(spec, field), low, high)
    if not 0 <= spec.nnodes_min <= spec.nnodes:
        raise bad("nnodes_min", f"must be 0 to nnodes ({spec.nnodes}), not {spec.nnodes_min}")
    _check_preload(spec.preload)
    check_text("role", spec.role, ROLE_LENGTH_MAX)
    hang_s = spec.hang_seconds if spec.HasField("hang_seconds") else None
    if hang_s is not None and not (math.isfinite(hang_s) and 0 <= hang_s <= HANG_S_MAX):
        raise bad("hang_seconds", f"must be 0 (never) to {HANG_S_MAX:.0f} seconds, not {hang_s}")
    return JobSpec(
        argv=tuple(spec.argv),
        working_directory=spec.working_directory,
        environment=tuple(sorted(spec.environment.items())),
        python=spec.python,
        nnodes=spec.nnodes,
        nproc_per_node=spec.nproc_per_node,
        max_restarts=spec.max_restarts,
        checkpoint_directory=spec.checkpoint_directory,
        log_directory=spec.log_directory,
        workload=_workload(spec),
        preload=tuple(spec.preload),
        nnodes_min=spec.nnodes_min,
        no_python=spec.no_python,
        role=spec.role,
        hang_seconds=hang_s,
        virtual_local_rank=spec.virtual_local_rank,
        **wishes_from_proto(spec),
    )


def require_room(spec: JobSpec, gpus_per_node: Sequence[int]) -> None:
    """Raises FailedPrecondition (JOB_TOO_LARGE) when an empty fleet of these nodes could not hold the job."""
    if could_ever_fit(Request(spec.nnodes, spec.nproc_per_node, nnodes_min=spec.nnodes_min), gpus_per_node):
        return
    asked = (
        f"asked for {counted(spec.nnodes_min or spec.nnodes, 'node')} with {counted(spec.nproc_per_node, 'GPU')} each"
    )
    if gpus_per_node:
        has = (
            f"the fleet has {counted(len(gpus_per_node), 'node')}, the largest with {counted(max(gpus_per_node), 'GPU')}; "
            "ask for less or add nodes"
        )
    else:
        has = "no node has registered yet; start an agent (switchgear agent) and try again"
    raise FailedPrecondition(
        f"{asked}, but {has}",
        Reason.JOB_TOO_LARGE,
        nnodes=str(spec.nnodes),
        nproc_per_node=str(spec.nproc_per_node),
        fleet_nodes=str(len(gpus_per_node)),
        largest_node_gpus=str(max(gpus_per_node, default=0)),
    )


def _workload(spec: job_pb.JobSpec) -> Workload:
    if spec.workload not in job_pb.JobSpec.Workload.values():
        raise bad("workload", f"must be TRAINING or INFERENCE, not {spec.workload}")
    if spec.workload != job_pb.JobSpec.INFERENCE:
        return Workload.TRAINING
    if spec.checkpoint_directory:
        raise bad("checkpoint_directory", "must be empty for workload INFERENCE: a replica writes no checkpoints")
    return Workload.INFERENCE


def _check_argv(argv: Sequence[str]) -> None:
    if not argv or not argv[0]:
        raise bad("argv", "is empty; give the script and its arguments after --")
    if len(argv) > ARGV_ITEMS_MAX:
        raise too_large("argv", f"has {len(argv)} items, {ARGV_ITEMS_MAX} are allowed; pass a file")
    size = sum(len(item.encode()) + 1 for item in argv)
    if size > ARGV_BYTES_MAX:
        raise too_large("argv", f"has {size} bytes, {ARGV_BYTES_MAX} are allowed; pass a file")
    if any("\0" in item for item in argv):
        raise bad("argv", "must not contain NUL")


def _check_preload(modules: Sequence[str]) -> None:
    if len(modules) > PRELOAD_MAX:
        raise too_large(
            "preload", f"has {len(modules)} modules, {PRELOAD_MAX} are allowed; name one that imports the others"
        )
    for module in modules:
        if len(module) > MODULE_LENGTH_MAX or not _MODULE.fullmatch(module):
            raise bad("preload", f"must name modules as after `import`, not {module[:100]!r}")


def _check_environment(environment: dict[str, str]) -> None:
    size = sum(len(key.encode()) + len(value.encode()) + 2 for key, value in environment.items())
    if size > ENVIRONMENT_BYTES_MAX:
        raise too_large("environment", f"has {size} bytes, {ENVIRONMENT_BYTES_MAX} are allowed; pass a file")
    for key, value in environment.items():
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise bad(
                "environment",
                f"has the variable {key[:100]!r}: a name must not be empty nor hold =, and no NUL anywhere",
            )


def _check_folder(field: str, path: str, *, required: bool) -> None:
    check_text(field, path, PATH_BYTES_MAX)
    if not path and not required:
        return
    if not PurePosixPath(path).is_absolute():
        raise bad(field, f"must be an absolute path, not {path[:200]!r}: it is used on every node")
