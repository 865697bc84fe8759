"""Resource names (https://google.aip.dev/122): the only place that puts them together or takes them apart."""

from __future__ import annotations

import re

from switchgear.core.errors import Invalid, Reason

_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


def check_id(value: str, what: str) -> str:
    """`value`, when it may stand in a resource name.

    Raises Invalid otherwise: 1 to 63 lower-case letters, digits, dots and dashes that begin and end with a letter or digit.
    """
    if not _ID.fullmatch(value):
        raise Invalid(
            f"{what} {value!r} must have 1 to 63 lower-case letters, digits, dots or dashes and begin and end with a letter or digit",
            Reason.BAD_NAME,
            value=value[:100],
        )
    return value


def node_name(node: str) -> str:
    """`nodes/{node}`. Raises Invalid when the id is none (see `check_id`)."""
    return f"nodes/{check_id(node, 'node')}"


def gpu_name(node: str, index: int) -> str:
    """Name of a GPU from its node's resource name."""
    return f"{node}/gpus/{index}"


#: Shorter than other ids, since an incident's is the job's with a number behind it.
JOB_ID_LENGTH_MAX = 50


def job_name(job: str) -> str:
    """`jobs/{job}`. Raises Invalid when the id is none (see `check_id`) or has more than 50 characters."""
    if len(job) > JOB_ID_LENGTH_MAX:
        raise Invalid(f"job {job!r} must have at most {JOB_ID_LENGTH_MAX} characters", Reason.BAD_NAME, value=job[:100])
    return f"jobs/{check_id(job, 'job')}"


def attempt_name(job: str, generation: int) -> str:
    """Name of an attempt from its job's resource name."""
    return f"{job}/attempts/{generation}"


def incident_name(incident: str) -> str:
    """`incidents/{incident}`. Raises Invalid when the id is none (see `check_id`)."""
    return f"incidents/{check_id(incident, 'incident')}"


def signal_name(signal: str) -> str:
    """`signals/{signal}`. Raises Invalid when the id is none (see `check_id`)."""
    return f"signals/{check_id(signal, 'signal')}"


#: Shorter than other ids, since the id of a replica's job is the service's with a number behind it.
SERVICE_ID_LENGTH_MAX = 40


def inference_service_name(service: str) -> str:
    """`inferenceServices/{service}`. Raises Invalid when the id is none (see `check_id`) or has more than 40 characters."""
    if len(service) > SERVICE_ID_LENGTH_MAX:
        raise Invalid(
            f"inference service {service!r} must have at most {SERVICE_ID_LENGTH_MAX} characters",
            Reason.BAD_NAME,
            value=service[:100],
        )
    return f"inferenceServices/{check_id(service, 'inference service')}"


def replica_name(service: str, number: int) -> str:
    """Name of a replica from its service's resource name."""
    return f"{service}/replicas/{number}"


def parse(name: str, pattern: str) -> tuple[str, ...]:
    """The ids in `name` where `pattern` has stars: `parse("nodes/a/gpus/3", "nodes/*/gpus/*") == ("a", "3")`.

    Raises Invalid when the name is not of that form.
    """
    have, want = name.split("/"), pattern.split("/")
    if len(have) != len(want) or any(w not in ("*", h) for h, w in zip(have, want, strict=True)):
        raise Invalid(
            f"{name!r} is not a resource name of the form {pattern}", Reason.BAD_NAME, value=name[:200], pattern=pattern
        )
    return tuple(check_id(h, "id") for h, w in zip(have, want, strict=True) if w == "*")


def to_id(text: str, fallback: str = "x") -> str:
    """The nearest valid id to any text, for example a host's name or a script's stem."""
    cleaned = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip(".-")[:63].strip(".-")
    return cleaned or fallback
