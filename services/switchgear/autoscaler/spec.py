"""What an inference service must look like before anything is done about it."""

from __future__ import annotations

from pathlib import PurePosixPath

from switchgear.autoscaler import policies
from switchgear.autoscaler.model import ServiceSpec
from switchgear.autoscaler.observation import Slo
from switchgear.core import names
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
#: Below it nothing can be reckoned with, and nothing serves.
TOKENS_PER_S_MIN, TOKENS_PER_S_MAX = 1e-3, 1e9
#: Outside of these nobody can say after a day whether it was kept.
OBJECTIVE_MIN, OBJECTIVE_MAX = 0.5, 0.9999
FACTOR_MAX = 100.0
#: As a job's.
PRIORITY_MAX = 1000
#: Set for each replica by us.
RESERVED_PREFIX = "SWITCHGEAR_"

_DEFAULTS, _SLO = ServiceSpec((), ""), Slo()


def spec_from_proto(spec: pb.InferenceServiceSpec) -> ServiceSpec:
    """The specification, checked, with its defaults filled in. Raises Invalid that names the field."""
    _check_program(spec)
    min_replicas, max_replicas = bounds_from_proto(spec.min_replicas, spec.max_replicas, "spec.")
    if not 0 <= spec.gpus_per_replica <= GPUS_MAX:
        raise bad("spec.gpus_per_replica", f"must be 1 to {GPUS_MAX}, not {spec.gpus_per_replica}")
    latency_target_s = _positive("latency_target_seconds", spec.latency_target_seconds, _DEFAULTS.latency_target_s)
    return ServiceSpec(
        argv=tuple(spec.argv),
        working_directory=spec.working_directory,
        environment=tuple(sorted(spec.environment.items())),
        python=spec.python,
        gpus_per_replica=spec.gpus_per_replica or _DEFAULTS.gpus_per_replica,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        tokens_per_s=_positive(
            "tokens_per_second",
            spec.tokens_per_second,
            _DEFAULTS.tokens_per_s,
            low=TOKENS_PER_S_MIN,
            high=TOKENS_PER_S_MAX,
        ),
        scale_down_delay_s=_known("scale_down_delay_seconds", spec.scale_down_delay_seconds),
        drain_timeout_s=_positive("drain_timeout_seconds", spec.drain_timeout_seconds, _DEFAULTS.drain_timeout_s),
        latency_target_s=latency_target_s,
        slo=_slo(spec.slo, latency_target_s if spec.latency_target_seconds else None),
        gpu_budget=_gpu_budget(spec),
        cold_start_s=_known("cold_start_seconds", spec.cold_start_seconds),
        prefill_tokens_per_s=_known(
            "prefill_tokens_per_second", spec.prefill_tokens_per_second, low=TOKENS_PER_S_MIN, high=TOKENS_PER_S_MAX
        ),
        shadow_policy=shadow_policy(spec.shadow_policy, "spec.shadow_policy"),
        queue=_queue(spec.queue),
        priority=_priority(spec.priority),
        preemptible=spec.preemptible,
    )


def shadow_policy(name: str, field: str) -> str:
    """The name of a policy that may be a shadow. Raises Invalid that names those that there are."""
    if name:
        try:
            policies.scaler(name)
        except Invalid as error:
            raise bad(field, f"is none: {error.message}") from error
    return name


def _slo(slo: pb.ServiceLevelObjective, e2e_s: float | None) -> Slo:
    objective = slo.objective if slo.HasField("objective") else _SLO.objective
    if not OBJECTIVE_MIN <= objective <= OBJECTIVE_MAX:
        raise bad("spec.slo.objective", f"must be a fraction from {OBJECTIVE_MIN} to {OBJECTIVE_MAX}, not {objective}")
    factor = slo.ttft_prefill_factor if slo.HasField("ttft_prefill_factor") else _SLO.ttft_prefill_factor
    if not 0 <= factor <= FACTOR_MAX:
        raise bad("spec.slo.ttft_prefill_factor", f"must be 0 to {FACTOR_MAX:g}, not {factor}")
    return Slo(
        objective=objective,
        ttft_s=_limit(slo, "ttft_seconds", _SLO.ttft_s),
        ttft_prefill_factor=factor,
        tpot_s=_limit(slo, "tpot_seconds", _SLO.tpot_s),
        e2e_s=_limit(slo, "e2e_seconds", e2e_s),
        wait_s=_limit(slo, "wait_seconds", _SLO.wait_s),
    )


def _limit(slo: pb.ServiceLevelObjective, field: str, default: float | None) -> float | None:
    if not slo.HasField(field):
        return default
    return _known(f"slo.{field}", getattr(slo, field))


def _gpu_budget(spec: pb.InferenceServiceSpec) -> int | None:
    least = max(1, spec.min_replicas) * (spec.gpus_per_replica or _DEFAULTS.gpus_per_replica)
    if not (spec.gpu_budget == 0 or least <= spec.gpu_budget <= GPUS_MAX * REPLICAS_MAX):
        raise bad(
            "spec.gpu_budget",
            f"must be at least {least}, which min_replicas needs, or 0 for none; not {spec.gpu_budget}",
        )
    return spec.gpu_budget or None


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


def _queue(queue: str) -> str:
    if queue:
        names.parse(queue, "queues/*")
    return queue


def _priority(priority: int) -> int:
    if abs(priority) > PRIORITY_MAX:
        raise bad("spec.priority", f"must be -{PRIORITY_MAX} to {PRIORITY_MAX}, not {priority}")
    return priority


def _positive(field: str, value: float, default: float, *, low: float = 0.0, high: float = SECONDS_MAX) -> float:
    if value != 0 and not low <= value <= high:
        least, zero = f"at least {low:g}" if low else "above 0", f"{default:g}" if default else "not set"
        raise bad(f"spec.{field}", f"must be {least} and at most {high:g}, or 0 for {zero}; not {value}")
    return value or default


def _known(field: str, value: float, *, low: float = 0.0, high: float = SECONDS_MAX) -> float | None:
    """None for 0."""
    return _positive(field, value, 0.0, low=low, high=high) or None


def _too_large(field: str, problem: str) -> Invalid:
    return Invalid(f"{field} {problem}", Reason.LIMIT_EXCEEDED, field=field)
