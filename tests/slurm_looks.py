"""Nodes and jobs of a Slurm that is only imagined, and a launcher of ours: what the engine's pure tests are about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from switchgear.scheduler.engines.slurm import keys
from switchgear.scheduler.engines.slurm.keys import Key
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.scheduler.model import JobSpec, LauncherRef, Wanted, WantedLauncher
from switchgear.slurm.model import Gpus, JobState, NodeState, SlurmJob, SlurmNode

NOW_S = 1_700_000_000
SETTINGS = SlurmSettings(cluster="c1", user="ops", state_dir=Path("/state"), command=("python", "-m", "launcher"))
SPEC = JobSpec(("train.py",), "/w", (("A", "it's\n$(one)"),), "", 2, 2, 0, "", "/logs")
REF = LauncherRef("jobs/llama", 3)
KEY = Key("jobs/llama", 3, "nodes/n1", 0xABC)
LAUNCHER = WantedLauncher(REF, SPEC, (0, 1), create_time_unix_ns=0xABC)
WANTED = {"nodes/n1": Wanted((LAUNCHER,))}


def slurm_node(name: str = "n1", state: str = NodeState.IDLE, *flags: str, **fields: Any) -> SlurmNode:
    node = SlurmNode(
        name, "10.0.0.1", name, state, frozenset(flags), 64, 1000, Gpus({"h100": 8}), Gpus(), ("gpu",), (), "", "",
        None, None, None, "22.05.8",
    )  # fmt: skip
    return replace(node, **fields)


def slurm_job(number: int, state: str = JobState.RUNNING, *flags: str, key: Key = KEY, **fields: Any) -> SlurmJob:
    waits = state == JobState.PENDING
    job = SlurmJob(
        number, keys.name_of(key, "c1"), "ops", "", "gpu", "", state, frozenset(flags), "", "", keys.comment_of(key, "c1"),
        () if waits else (key.node_id,), {}, Gpus({"h100": 2}), 1, (key.node_id,), (), 1, NOW_S - 100,
        None if waits else NOW_S - 90, None, None, 0, None, None, None, None, None, None,
    )  # fmt: skip
    return replace(job, **fields)


def ended_job(number: int, state: str, end_s: int = NOW_S - 50, **fields: Any) -> SlurmJob:
    return slurm_job(number, state, end_s=end_s, **fields)
