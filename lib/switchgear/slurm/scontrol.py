"""Nodes and jobs out of `scontrol -d -o show node` and `show job`, one a line: for a Slurm whose programs cannot write JSON.

Times must be Unix seconds (`SLURM_TIME_FORMAT=%s`). A name or comment that itself looks like ` Word=` is cut there: Slurm writes no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from switchgear.core.errors import Invalid
from switchgear.slurm import parse
from switchgear.slurm.hostlist import expand
from switchgear.slurm.model import SlurmJob, SlurmNode

_KEY = re.compile(r"(?:^|\s)([A-Z][A-Za-z/:_]*)=")
_NODE = {
    "NodeName": "name", "NodeAddr": "address", "NodeHostName": "hostname", "State": "state", "CPUTot": "cpus",
    "RealMemory": "real_memory", "Gres": "gres", "GresUsed": "gres_used", "Partitions": "partitions",
    "AvailableFeatures": "features", "ActiveFeatures": "active_features", "BootTime": "boot_time",
    "SlurmdStartTime": "slurmd_start_time", "Version": "version",
}  # fmt: skip
_JOB = {
    "JobId": "job_id", "JobName": "name", "Account": "account", "Partition": "partition", "QOS": "qos",
    "JobState": "job_state", "Reason": "state_reason", "Comment": "comment", "NodeList": "nodes", "NumNodes": "node_count",
    "ReqNodeList": "required_nodes", "ExcNodeList": "excluded_nodes", "Priority": "priority", "SubmitTime": "submit_time",
    "StartTime": "start_time", "EndTime": "end_time", "Restarts": "restart_cnt", "ArrayJobId": "array_job_id",
    "ArrayTaskId": "array_task_id", "HetJobId": "het_job_id", "HetJobOffset": "het_job_offset",
    "TresPerNode": "tres_per_node", "TRES": "tres_alloc_str", "AllocTRES": "tres_alloc_str", "ReqTRES": "tres_req_str",
}  # fmt: skip
_REASON = re.compile(r"(.*) \[([^\[\]@]*)@(\d+)\]", re.DOTALL)
_TIME_LIMIT = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")


def nodes(text: str) -> tuple[SlurmNode, ...]:
    """Those of `scontrol --oneliner --details show node`."""
    return tuple(
        parse.node(_node(pairs)) for pairs in map(_pairs, text.split("\n")) if pairs and pairs[0][0] == "NodeName"
    )


def jobs(text: str) -> tuple[SlurmJob, ...]:
    """Those of `scontrol --oneliner --details show job`."""
    return tuple(parse.job(_job(pairs)) for pairs in map(_pairs, text.split("\n")) if pairs and pairs[0][0] == "JobId")


def _pairs(line: str) -> list[tuple[str, str]]:
    found = list(_KEY.finditer(line))
    ends = [*(each.start() for each in found[1:]), len(line)]
    return [(each[1], line[each.end() : end].strip()) for each, end in zip(found, ends, strict=False)]


def _node(pairs: list[tuple[str, str]]) -> Mapping[str, Any]:
    first = _first(pairs)
    fields: dict[str, Any] = {ours: first[theirs] for theirs, ours in _NODE.items() if theirs in first}
    reason = first.get("Reason", "")
    if found := _REASON.fullmatch(reason):
        fields |= {"reason": found[1], "reason_set_by_user": found[2], "reason_changed_at": found[3]}
    else:
        fields["reason"] = reason
    return fields


def _job(pairs: list[tuple[str, str]]) -> Mapping[str, Any]:
    first = _first(pairs)
    fields: dict[str, Any] = {ours: first[theirs] for theirs, ours in _JOB.items() if theirs in first}
    fields["user_name"] = first.get("UserId", "").partition("(")[0]
    if found := _TIME_LIMIT.fullmatch(first.get("TimeLimit", "")):
        days, hours, minutes, _ = (int(part or 0) for part in found.groups())
        fields["time_limit"] = (days * 24 + hours) * 60 + minutes
    code, _, signal = first.get("ExitCode", "").partition(":")
    if code:
        fields["exit_code"] = {"return_code": code, "signal": {"id": signal}}
    try:
        held, own = dict(_held(pairs)), expand(first.get("NodeList", ""))
    except Invalid:
        return fields  # a form of names that we do not know
    if held and held.keys() <= set(own):
        fields["gres_detail"] = [held.get(node, "") for node in own]
    return fields


def _held(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each node of a job and its resources there: `Nodes=n[1,3] CPU_IDs=0 Mem=0 GRES=gpu:h100:8(IDX:0-7)`, once for equal nodes."""
    where: tuple[str, ...] = ()
    for key, value in pairs:
        if key == "Nodes":
            where = expand(value)
        elif key == "GRES" and value:
            yield from ((node, value) for node in where)


def _first(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """What comes later under a key that was there already is part of free text, or of the list of nodes."""
    return dict(reversed(pairs))
