"""What an inference service must look like before anything is done about it."""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from switchgear.autoscaler.model import ServiceSpec
from switchgear.core.errors import Invalid, Reason
from switchgear.v1 import autoscaler_service_pb2 as pb

#: The scheduler takes argv and environment of a job up to 64 KiB each; the replica's own variables need some of it.
ARGV_ITEMS_MAX = 1000
ARGV_BYTES_MAX = 60 * 1024
ENVIRONMENT_BYTES_MAX = 60 * 1024
PATH_BYTES_MAX = 4096
GPUS_MAX = 256
REPLICAS_MAX = 1000
#: A week: longer than anything that is meant.
SECONDS_MAX = 7 * 24 * 3600.0
TOKENS_PER_S_MAX = 1e9
#: Set for each replica by us.
RESERVED_PREFIX = "SWITCHGEAR_"

_DEFAULTS = ServiceSpec((), "")


def spec_from_proto(spec: pb.InferenceServiceSpec) -> ServiceSpec:
    """The specification, checked, with its defaults filled in. Raises Invalid that names the field."""
    _check_program(spec)
    min_replicas, max_replicas = bounds_from_proto(spec.min_replicas, spec.max_replicas, "spec.")
    if not 0 <= spec.gpus_per_replica <= GPUS_MAX:
        raise bad("spec.gpus_per_replica", f"must be 1 to {GPUS_MAX}, not {spec.gpus_per_replica}")
    return ServiceSpec(
        argv=tuple(spec.argv),
        working_directory=spec.working_directory,
        environment=tuple(sorted(spec.environment.items())),
        python=spec.python,
        gpus_per_replica=spec.gpus_per_replica or _DEFAULTS.gpus_per_replica,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        target_wait_s=_positive("target_wait_seconds", spec.target_wait_seconds, _DEFAULTS.target_wait_s),
        tokens_per_s=_positive(
            "tokens_per_second", spec.tokens_per_second, _DEFAULTS.tokens_per_s, high=TOKENS_PER_S_MAX
        ),
        scale_down_delay_s=_positive(
            "scale_down_delay_seconds", spec.scale_down_delay_seconds, _DEFAULTS.scale_down_delay_s
        ),
        drain_timeout_s=_positive("drain_timeout_seconds", spec.drain_timeout_seconds, _DEFAULTS.drain_timeout_s),
        latency_target_s=_positive("latency_target_seconds", spec.latency_target_seconds, _DEFAULTS.latency_target_s),
    )


def bounds_from_proto(min_replicas: int, max_replicas: int, prefix: str = "") -> tuple[int, int]:
    """Least and most replicas. Raises Invalid (BAD_FIELD) when they are none."""
    if not 1 <= max_replicas <= REPLICAS_MAX:
        raise bad(f"{prefix}max_replicas", f"must be 1 to {REPLICAS_MAX}, not {max_replicas}")
    if not 0 <= min_replicas <= max_replicas:
        raise bad(f"{prefix}min_replicas", f"must be 0 to max_replicas ({max_replicas}), not {min_replicas}")
    return min_replicas, max_replicas


def bad(field: str, problem: str) -> Invalid:
    """The error for a field with a wrong value."""
    return Invalid(f"{field} {problem}", Reason.BAD_FIELD, field=field)


def _check_program(spec: pb.InferenceServiceSpec) -> None:
    if not spec.argv or not spec.argv[0]:
        raise bad("spec.argv", "is empty; give the script that serves and its arguments after --")
    size = sum(len(item.encode()) + 1 for item in spec.argv)
    if len(spec.argv) > ARGV_ITEMS_MAX or size > ARGV_BYTES_MAX:
        allowed = f"{ARGV_ITEMS_MAX} items and {ARGV_BYTES_MAX} bytes are allowed"
        raise _too_large("spec.argv", f"has {len(spec.argv)} items and {size} bytes, {allowed}; pass a file")
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in spec.environment.items())
    if size > ENVIRONMENT_BYTES_MAX:
        raise _too_large(
            "spec.environment", f"has {size} bytes, {ENVIRONMENT_BYTES_MAX} are allowed; pass a file instead"
        )
    for name, value in spec.environment.items():
        if not name or "=" in name or "\0" in name + value or name.startswith(RESERVED_PREFIX):
            raise bad(
                "spec.environment",
                f"has the variable {name[:100]!r}: a name must not be empty, hold = or begin with {RESERVED_PREFIX}, and no NUL anywhere",
            )
    for field in ("working_directory", "python"):
        path: str = getattr(spec, field)
        if len(path.encode()) > PATH_BYTES_MAX:
            raise _too_large(f"spec.{field}", f"is longer than {PATH_BYTES_MAX} bytes; shorten it")
    if any("\0" in text for text in (*spec.argv, spec.working_directory, spec.python)):
        raise bad("spec", "must not contain NUL")
    if not PurePosixPath(spec.working_directory).is_absolute():
        raise bad("spec.working_directory", f"must be an absolute path, not {spec.working_directory[:200]!r}")


def _positive(field: str, value: float, default: float, *, high: float = SECONDS_MAX) -> float:
    if not (math.isfinite(value) and 0 <= value <= high):
        raise bad(f"spec.{field}", f"must be above 0 and at most {high:g}, or 0 for {default:g}; not {value}")
    return value or default


def _too_large(field: str, problem: str) -> Invalid:
    return Invalid(f"{field} {problem}", Reason.LIMIT_EXCEEDED, field=field)
