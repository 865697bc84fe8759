"""Nodes and jobs out of Slurm's JSON: `squeue --json`, `sinfo --json`, `scontrol show nodes --json` and slurmrestd.

Written after the data parsers of Slurm's own sources: `openapi/v0.0.38` (22.05) and `data_parser` v0.0.39 (23.02), v0.0.40 (23.11),
v0.0.41 (24.05), v0.0.42 (24.11), v0.0.43 (25.05), v0.0.44 (25.11), v0.0.45 (26.05). What is there decides, never the version: a
number is plain or `{"set", "infinite", "number"}`, a state is one word or a list, a list of names is a list or text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from switchgear.core.errors import FailedPrecondition, Invalid, Reason
from switchgear.slurm.gres import gpus
from switchgear.slurm.hostlist import expand
from switchgear.slurm.model import ENDED, Gpus, JobFlag, JobState, NodeFlag, NodeState, SlurmJob, SlurmNode

Fields = Mapping[str, Any]

#: NO_VAL and INFINITE of 32 and 64 bits, which some versions let through (slurm.h).
_NO_NUMBER = frozenset({0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF})
#: What lies below the flag that 22.05 and 23.02 show in place of the base state (`job_state_string`). Of others nobody can tell.
_BELOW = {
    JobFlag.CONFIGURING: JobState.RUNNING,
    JobFlag.RESIZING: JobState.RUNNING,
    JobFlag.SIGNALING: JobState.RUNNING,
    JobFlag.STOPPED: JobState.SUSPENDED,
    JobFlag.REQUEUED: JobState.PENDING,
    JobFlag.REQUEUE_FED: JobState.PENDING,
    JobFlag.REQUEUE_HOLD: JobState.PENDING,
    JobFlag.SPECIAL_EXIT: JobState.PENDING,
    JobFlag.RESV_DEL_HOLD: JobState.PENDING,
}
_NOTHING = frozenset({"", "None", "N/A", "(null)", "Unknown"})


def document(text: str | bytes) -> Fields:
    """What Slurm has printed or answered.

    Raises FailedPrecondition (SLURM_OUTPUT) when it is not a JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        shown = text[:200] if isinstance(text, str) else text[:200].decode(errors="replace")
        raise FailedPrecondition(
            f"Slurm answered with something else than JSON: {shown!r}; look whether its plugins for JSON are installed",
            Reason.SLURM_OUTPUT,
        )
    return found


def complaints(answer: Fields) -> list[str]:
    """What it says went wrong, in its own words; a list that is empty beside one is unknown, not empty."""
    texts = []
    for error in answer.get("errors") or ():
        words = [error.get("error"), error.get("description")] if isinstance(error, dict) else [error]
        number = _number(error.get("error_number", error.get("errno"))) if isinstance(error, dict) else None
        texts.append(": ".join(str(word) for word in words if word) or f"error {number}")
    return texts


def nodes(answer: Fields) -> tuple[SlurmNode, ...]:
    """The nodes of an answer that has them in `nodes`."""
    return tuple(node(fields) for fields in answer.get("nodes") or () if isinstance(fields, dict))


def jobs(answer: Fields) -> tuple[SlurmJob, ...]:
    """The jobs of an answer that has them in `jobs`."""
    return tuple(job(fields) for fields in answer.get("jobs") or () if isinstance(fields, dict))


def node(fields: Fields) -> SlurmNode:
    """One node, from the fields of any version."""
    words = [*_words(fields.get("state")), *_words(fields.get("state_flags"))]
    return SlurmNode(
        name=_text(fields.get("name")),
        address=_text(fields.get("address")),
        hostname=_text(fields.get("hostname")),
        state=_base(words, NodeState, NodeState.UNKNOWN),
        flags=frozenset(word for word in words if word not in NodeState.__members__),
        cpus=_number(fields.get("cpus")) or 0,
        memory_mib=_number(fields.get("real_memory")) or 0,
        gpus=gpus(_text(fields.get("gres"))),
        gpus_used=gpus(_text(fields.get("gres_used"))),
        partitions=_names(fields.get("partitions")),
        features=_names(fields.get("active_features")) or _names(fields.get("features")),
        reason=_text(fields.get("reason")),
        reason_user=_text(fields.get("reason_set_by_user")),
        reason_s=_number(fields.get("reason_changed_at")) or None,
        boot_s=_number(fields.get("boot_time")) or None,
        slurmd_start_s=_number(fields.get("slurmd_start_time")) or None,
        version=_text(fields.get("version", fields.get("slurmd_version"))),
    )


def job(fields: Fields) -> SlurmJob:
    """One job, from the fields of any version."""
    words = _words(fields.get("job_state"))
    flags = frozenset(word for word in words if word not in JobState.__members__)
    state = _base(words, JobState, next((below for flag, below in _BELOW.items() if flag in flags), JobState.UNKNOWN))
    ended = state in ENDED
    own = _names_of_nodes(fields.get("nodes")) or _names_of_nodes(_resources(fields))
    count = _number(fields.get("node_count")) or len(own) or 1
    asked = _asked(fields, count)
    time_limit_min = _number(fields.get("time_limit"))
    exit_code, exit_signal = _exit(fields.get("exit_code")) if ended else (None, None)
    het = _number(fields.get("het_job_id")) or None
    array = _number(fields.get("array_job_id")) or None
    return SlurmJob(
        id=_number(fields.get("job_id")) or 0,
        name=_text(fields.get("name")),
        user=_text(fields.get("user_name")),
        account=_text(fields.get("account")),
        partition=_text(fields.get("partition")),
        qos=_text(fields.get("qos")),
        state=state,
        flags=flags,
        reason=_text(fields.get("state_reason")),
        reason_detail=_text(fields.get("state_description")),
        comment=_text(fields.get("comment")),
        nodes=own,
        gpus={} if ended and JobFlag.COMPLETING not in flags else _held(own, fields.get("gres_detail"), asked),
        gpus_per_node=asked,
        node_count=count,
        required_nodes=_names_of_nodes(fields.get("required_nodes")),
        excluded_nodes=_names_of_nodes(fields.get("excluded_nodes")),
        priority=_number(fields.get("priority")) or 0,
        submit_s=_number(fields.get("submit_time")) or None,
        start_s=_number(fields.get("start_time")) or None,
        # Without a limit Slurm writes a time a year or a century ahead.
        end_s=_number(fields.get("end_time")) or None
        if ended or (time_limit_min and state != JobState.PENDING)
        else None,
        time_limit_s=time_limit_min * 60 if time_limit_min else None,
        restarts=_number(fields.get("restart_cnt")) or 0,
        array_job_id=array,
        array_task_id=_number(fields.get("array_task_id")) if array else None,
        het_job_id=het,
        het_offset=_number(fields.get("het_job_offset")) if het else None,
        exit_code=exit_code,
        exit_signal=exit_signal,
    )


def _number(value: object) -> int | None:
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") and not value.get("infinite") else None
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else None
    if not isinstance(value, int | float) or isinstance(value, bool) or value in _NO_NUMBER:
        return None
    return int(value)


def _text(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return "" if text in _NOTHING else text


def _names(value: object) -> tuple[str, ...]:
    return tuple(name for name in _text(value).split(",") if name)


def _names_of_nodes(value: object) -> tuple[str, ...]:
    text = _text(value)
    try:
        return expand(text)
    except Invalid:
        return (text,)  # a form that we do not know is shown as it is


def _words(value: object) -> list[str]:
    """States and flags in capitals: a list, or the text `MIXED+DRAIN`, in which a trailing `*` means that the node does not respond."""
    listed: Iterable[object] = value if isinstance(value, list) else _text(value).split("+")
    words = [str(word).upper() for word in listed if word]
    silent = [NodeFlag.NOT_RESPONDING for word in words if word.endswith("*")]
    return [word.rstrip("*~#!%$@^-") for word in words] + [*silent]


def _base(words: Sequence[str], states: type[JobState | NodeState], otherwise: str) -> str:
    return next((word for word in words if word in states.__members__), otherwise)


def _resources(fields: Fields) -> object:
    """The list of nodes as `job_resources` has it: text, or since 24.05 an object."""
    found = fields.get("job_resources")
    listed = found.get("nodes") if isinstance(found, dict) else None
    return listed.get("list") if isinstance(listed, dict) else listed


def _asked(fields: Fields, node_count: int) -> Gpus:
    per_node = gpus(_text(fields.get("tres_per_node")))
    if per_node.count:
        return per_node
    total = gpus(_text(fields.get("tres_alloc_str")) or _text(fields.get("tres_req_str")))
    return Gpus({kind: number // node_count for kind, number in total.by_type.items() if number >= node_count}, None)


def _held(own: Sequence[str], detail: object, asked: Gpus) -> Mapping[str, Gpus]:
    """What it holds by node. detail: a text for each of its nodes, in their order, while it runs."""
    if isinstance(detail, list) and own and len(detail) == len(own):
        told = {name: gpus(_text(text)) for name, text in zip(own, detail, strict=True)}
        return {name: held for name, held in told.items() if held.count}
    return dict.fromkeys(own, asked) if asked.count else {}


def _exit(value: object) -> tuple[int | None, int | None]:
    """Code and signal. Until 23.02 the status as in wait(2), from then on an object that tells them apart."""
    if isinstance(value, dict) and "return_code" in value:
        signal = value.get("signal")
        if isinstance(signal, dict):
            signal = signal.get("id", signal.get("signal_id"))
        return _number(value["return_code"]) or 0, _number(signal) or None
    status = _number(value)
    return (None, None) if status is None else (status >> 8, status & 0x7F or None)
