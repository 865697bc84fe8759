"""The same two jobs and one node as several versions of Slurm write them, as JSON.

Put together by hand from what Slurm's sources write, field by field, at the tag that each sample names; 22.05 is also what the tests
see live. Fields that nobody reads are left out.
"""

from __future__ import annotations

from typing import Any

SUBMITTED, STARTED, LIMIT_MIN = 1_795_369_442, 1_795_369_443, 30
BOOTED, SLURMD_STARTED, DRAINED = 1_795_298_144, 1_795_369_400, 1_795_369_445
_END = STARTED + LIMIT_MIN * 60


def number(value: int) -> dict[str, Any]:
    """From v0.0.39 on: a number that may be unset or infinite."""
    return {"set": True, "infinite": False, "number": value}


UNSET = {"set": False, "infinite": False, "number": 0}
INFINITE = {"set": False, "infinite": True, "number": 0}


# tag slurm-22-05-8-1, src/plugins/openapi/v0.0.38: jobs.c, nodes.c
_RUNNING_38 = {
    "account": "vision", "array_job_id": 40, "array_task_id": 3, "comment": "switchgear:c:llama:1", "job_id": 43,
    "end_time": _END, "excluded_nodes": "gpu09", "exit_code": 0, "het_job_id": 0, "het_job_offset": 0,
    "gres_detail": ["gpu:h100:4(IDX:0-3)", "gpu:h100:4(IDX:0,2-4)"],
    "job_resources": {"nodes": "gpu[01-02]", "allocated_hosts": 2}, "job_state": "RUNNING", "name": "llama",
    "nodes": "gpu[01-02]", "node_count": 2, "partition": "train", "priority": 4_294_901_759, "qos": "high",
    "required_nodes": "gpu[01-02]", "restart_cnt": 2, "start_time": STARTED, "state_description": "", "state_reason": "None",
    "submit_time": SUBMITTED, "time_limit": LIMIT_MIN, "tres_per_node": "gres:gpu:h100:4", "user_name": "ada",
}  # fmt: skip
_ENDED_38 = {
    "account": "", "array_job_id": 0, "array_task_id": None, "comment": "", "job_id": 50, "end_time": STARTED + 5,
    "excluded_nodes": "", "exit_code": 9, "het_job_id": 48, "het_job_offset": 2, "gres_detail": [], "job_state": "FAILED",
    "name": "eval", "nodes": "gpu03", "node_count": 1, "partition": "train", "priority": 0, "qos": "", "required_nodes": "",
    "restart_cnt": 0, "start_time": STARTED, "state_description": "", "state_reason": "JobLaunchFailure",
    "submit_time": SUBMITTED, "time_limit": None, "tres_per_node": "", "tres_alloc_str": "cpu=1,node=1,billing=1",
    "user_name": "bob",
}  # fmt: skip
_NODE_38 = {
    "name": "gpu01", "address": "10.0.0.1", "hostname": "gpu01", "state": "mixed", "state_flags": ["DRAIN", "NOT_RESPONDING"],
    "cpus": 96, "real_memory": 1_031_000, "gres": "gpu:h100:8(S:0-1)", "gres_used": "gpu:h100:4(IDX:0-3)",
    "partitions": ["train", "debug"], "features": "nvlink,ib", "active_features": "ib", "reason": "fan is broken",
    "reason_set_by_user": "root", "reason_changed_at": DRAINED, "boot_time": BOOTED, "slurmd_start_time": SLURMD_STARTED,
    "slurmd_version": "22.05.8",
}  # fmt: skip

# tag slurm-23-02-7-1, src/plugins/data_parser/v0.0.39/parsers.c: PARSER_ARRAY(JOB_INFO), PARSER_ARRAY(NODE)
_RUNNING_39 = _RUNNING_38 | {
    "array_job_id": number(40), "array_task_id": number(3), "exit_code": number(0), "het_job_id": number(0),
    "het_job_offset": number(0), "node_count": number(2), "priority": number(4_294_901_759), "time_limit": number(LIMIT_MIN),
}  # fmt: skip
_ENDED_39 = _ENDED_38 | {
    "array_job_id": number(0), "array_task_id": UNSET, "exit_code": number(9), "het_job_id": number(48),
    "het_job_offset": number(2), "node_count": number(1), "priority": number(0), "time_limit": INFINITE,
}  # fmt: skip
_NODE_39 = {key: value for key, value in _NODE_38.items() if key not in {"state_flags", "slurmd_version"}} | {
    "state": ["MIXED", "DRAIN", "NOT_RESPONDING"], "features": ["nvlink", "ib"], "active_features": ["ib"],
    "version": "23.02.7", "gres_used": "gpu:h100:4(IDX:0-3)",
}  # fmt: skip

# tag slurm-23-11-10-1, data_parser/v0.0.40: states as lists, times that may be unset, exit codes taken apart
_RUNNING_40 = _RUNNING_39 | {
    "job_state": ["RUNNING"], "start_time": number(STARTED), "end_time": number(_END), "submit_time": number(SUBMITTED),
    "exit_code": {"status": ["SUCCESS"], "return_code": number(0), "signal": {"id": UNSET, "name": ""}},
    "tres_per_node": "gres/gpu:h100:4",
}  # fmt: skip
_ENDED_40 = _ENDED_39 | {
    "job_state": ["FAILED"], "start_time": number(STARTED), "end_time": number(STARTED + 5), "submit_time": number(SUBMITTED),
    "exit_code": {"status": ["SIGNALED"], "return_code": UNSET, "signal": {"id": number(9), "name": "Killed"}},
}  # fmt: skip
_NODE_40 = _NODE_39 | {
    "boot_time": number(BOOTED), "slurmd_start_time": number(SLURMD_STARTED), "reason_changed_at": number(DRAINED),
    "version": "23.11.10",
}  # fmt: skip

# tag slurm-24-05-4-1, data_parser/v0.0.41: the list of nodes in job_resources is an object
_RUNNING_41 = _RUNNING_40 | {"job_resources": {"select_type": ["CPU"], "nodes": {"count": 2, "list": "gpu[01-02]"}}}
_NODE_41 = _NODE_40 | {"version": "24.05.4"}
# tag slurm-26-05-3-1, data_parser/v0.0.45, written with its flag `complex`: unset is null, infinite is text
_RUNNING_COMPLEX = _RUNNING_41 | {
    "array_job_id": 40, "array_task_id": 3, "het_job_id": 0, "het_job_offset": 0, "node_count": 2,
    "priority": 4_294_901_759, "time_limit": LIMIT_MIN, "start_time": STARTED, "end_time": _END, "submit_time": SUBMITTED,
    "exit_code": {"status": ["SUCCESS"], "return_code": 0, "signal": {"id": None, "name": ""}},
}  # fmt: skip
_ENDED_COMPLEX = _ENDED_40 | {
    "array_job_id": 0, "array_task_id": None, "het_job_id": 48, "het_job_offset": 2, "node_count": 1, "priority": 0,
    "time_limit": "Infinity", "start_time": STARTED, "end_time": STARTED + 5, "submit_time": SUBMITTED,
    "exit_code": {"status": ["SIGNALED"], "return_code": None, "signal": {"id": 9, "name": "Killed"}},
}  # fmt: skip
_NODE_COMPLEX = _NODE_41 | {
    "boot_time": BOOTED, "slurmd_start_time": SLURMD_STARTED, "reason_changed_at": DRAINED, "version": "26.05.3",
}  # fmt: skip

#: By version of Slurm: a running task of an array, an ended part of a heterogeneous job, a drained node that does not answer.
SAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "22.05.8": (_RUNNING_38, _ENDED_38, _NODE_38),
    "23.02.7": (_RUNNING_39, _ENDED_39, _NODE_39),
    "23.11.10": (_RUNNING_40, _ENDED_40, _NODE_40),
    "24.05.4": (_RUNNING_41, _ENDED_40, _NODE_41),
    "26.05.3": (_RUNNING_COMPLEX, _ENDED_COMPLEX, _NODE_COMPLEX),
}
