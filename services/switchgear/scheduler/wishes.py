"""What a job asks of the planner, checked: its queue, what it needs of a node, where it wants to be, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from switchgear.core import names
from switchgear.scheduler.checks import bad, check_count, check_text, too_large
from switchgear.scheduler.model import Dependency, JobSpec, NodeSelector, TopologyWish
from switchgear.v1 import job_service_pb2 as job_pb

PRIORITY_MAX = 1000
#: No machine has so much of either.
CPU_MILLI_MAX = 10_000_000
MEMORY_MIB_MAX = 1 << 30
#: Ten years.
SECONDS_MAX = 10 * 365 * 24 * 3600.0
#: Names, values and taints: as long as Kubernetes' labels with their prefix.
LABEL_LENGTH_MAX = 316
#: A list that a person writes; each costs a look at every node.
WISHES_MAX = 64
DEPENDENCIES_MAX = 16
USER_LENGTH_MAX = 200
#: Of the topology, the widest first. A domain of a level is a node's label `topology/LEVEL`.
LEVELS = ("region", "zone", "spine", "block", "rack", "leaf", "rail", "nvlink")
TOPOLOGY_PREFIX = "topology/"
#: What a job is charged to and where an engine runs it: words on the engine's command line, so none may begin like an option.
_ENGINE_WORDS = ("account", "partition", "qos")
_ENGINE_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+:-]{0,99}")
#: Several partitions may be named; the first that starts the job has it.
_PARTITIONS = re.compile(rf"{_ENGINE_WORD.pattern}(,{_ENGINE_WORD.pattern}){{0,15}}")
_MIG = re.compile(r"[1-7]g\.[1-9]\d{0,3}gb(\+\w+(\.\w+)*)?")


def wishes_from_proto(spec: job_pb.JobSpec) -> dict[str, Any]:
    """The fields of `JobSpec` that the planner goes by. Raises Invalid (BAD_FIELD, BAD_NAME, LIMIT_EXCEEDED) that names the field."""
    if spec.queue:
        names.parse(spec.queue, "queues/*")
    for field, most in (("user", USER_LENGTH_MAX), ("key", USER_LENGTH_MAX), ("array", USER_LENGTH_MAX)):
        check_text(field, getattr(spec, field), most)
    check_count("priority", spec.priority, -PRIORITY_MAX, PRIORITY_MAX)
    check_count("cpu_milli", spec.cpu_milli, 0, CPU_MILLI_MAX)
    check_count("memory_mib", spec.memory_mib, 0, MEMORY_MIB_MAX)
    check_count("time_limit_seconds", spec.time_limit_seconds, 0, SECONDS_MAX)
    check_count("array_index", spec.array_index, 0, 1 << 31)
    _check_gpus(spec)
    for field in _ENGINE_WORDS:
        form, word = _PARTITIONS if field == "partition" else _ENGINE_WORD, getattr(spec, field)
        if word and not form.fullmatch(word):
            raise bad(field, f"must be a name of letters, digits and _ . @ + : -, at most 100, not {word[:50]!r}")
    for field in ("gpu_models", "tolerations"):
        _check_list(field, list(getattr(spec, field)), WISHES_MAX)
    _check_list("node_selectors", [one.key for one in spec.node_selectors], WISHES_MAX)
    for one in spec.node_selectors:
        _check_list("node_selectors", list(one.values), WISHES_MAX, what=f"values for {one.key}", empty=True)
        if not one.values:
            raise bad("node_selectors", f"names no value for {one.key!r}: write KEY=VALUE")
    _check_list("topology", [one.level for one in spec.topology], len(LEVELS))
    for wish in spec.topology:
        if wish.level not in LEVELS:
            raise bad("topology", f"names the level {wish.level!r}: there are {', '.join(LEVELS)}")
    _check_list("after", [one.job for one in spec.after], DEPENDENCIES_MAX)
    for before in spec.after:
        names.parse(before.job, "jobs/*")
    not_before = spec.not_before.ToNanoseconds() if spec.HasField("not_before") else 0
    if not_before < 0:
        raise bad("not_before", "must be a time since 1970")
    return {
        "queue": spec.queue,
        "user": spec.user,
        "priority": spec.priority,
        "cpu_milli": spec.cpu_milli,
        "memory_mib": spec.memory_mib,
        "gpu_milli": spec.gpu_milli,
        "mig_profile": spec.mig_profile,
        "gpu_models": tuple(sorted(spec.gpu_models)),
        "node_selectors": tuple(
            NodeSelector(one.key, tuple(sorted(one.values)), one.excludes) for one in spec.node_selectors
        ),
        "tolerations": tuple(sorted(spec.tolerations)),
        "topology": tuple(TopologyWish(one.level, one.required) for one in spec.topology),
        "time_limit_seconds": spec.time_limit_seconds,
        "not_before_unix_ns": not_before,
        "after": tuple(Dependency(one.job, one.any_end) for one in spec.after),
        "preemptible": spec.preemptible if spec.HasField("preemptible") else None,
        "harvest": spec.harvest,
        "key": spec.key,
        "array": spec.array,
        "array_index": spec.array_index,
        **{field: getattr(spec, field) for field in _ENGINE_WORDS},
    }


def wishes_to_proto(spec: JobSpec) -> dict[str, Any]:
    """The same for the wire."""
    proto: dict[str, Any] = {
        name: getattr(spec, name)
        for name in (
            *("queue", "user", "priority", "cpu_milli", "memory_mib", "gpu_milli", "mig_profile", "gpu_models"),
            *("tolerations", "time_limit_seconds", "preemptible", "harvest", "key", "array", "array_index"),
            *_ENGINE_WORDS,
        )
    }
    proto["node_selectors"] = [
        job_pb.NodeSelector(key=one.key, values=one.values, excludes=one.excludes) for one in spec.node_selectors
    ]
    proto["topology"] = [job_pb.TopologyWish(level=one.level, required=one.required) for one in spec.topology]
    proto["after"] = [job_pb.Dependency(job=one.job, any_end=one.any_end) for one in spec.after]
    return proto


def wishes_from_stored(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are no plain values, from the JSON of a table; absent in what earlier versions wrote."""
    return {
        "gpu_models": tuple(stored.get("gpu_models", ())),
        "node_selectors": tuple(
            NodeSelector(one["key"], tuple(one["values"]), one["excludes"]) for one in stored.get("node_selectors", ())
        ),
        "tolerations": tuple(stored.get("tolerations", ())),
        "topology": tuple(TopologyWish(**one) for one in stored.get("topology", ())),
        "after": tuple(Dependency(**one) for one in stored.get("after", ())),
    }


def _check_gpus(spec: job_pb.JobSpec) -> None:
    check_count("gpu_milli", spec.gpu_milli, 0, 999)
    if spec.mig_profile and not _MIG.fullmatch(spec.mig_profile):
        raise bad("mig_profile", f"must read like 1g.10gb, not {spec.mig_profile[:50]!r}")
    if spec.gpu_milli and spec.mig_profile:
        raise bad("gpu_milli", "does not go with mig_profile: leave one of them away")
    for field in ("gpu_milli", "mig_profile"):
        if getattr(spec, field) and spec.nproc_per_node != 1:
            raise bad(field, f"is for one rank a node, and nproc_per_node is {spec.nproc_per_node}")


def _check_list(field: str, items: list[str], most: int, *, what: str = "entries", empty: bool = False) -> None:
    if len(items) > most:
        raise too_large(field, f"has {len(items)} {what}, {most} are allowed")
    if len(set(items)) < len(items):
        raise bad(field, f"has {what} twice")
    for item in items:
        check_text(field, item, LABEL_LENGTH_MAX)
        if not item and not empty:
            raise bad(field, "has an empty entry")
