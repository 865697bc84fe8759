"""What an agent is told at its start."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from switchgear.agent.standbys import KINDS_MAX
from switchgear.core import names
from switchgear.core.errors import Invalid, Reason
from switchgear.core.tls import TlsFiles
from switchgear.sim import profiles, workloads

#: Where the kubelet has it unless its root was moved.
POD_RESOURCES = Path("/var/lib/kubelet/pod-resources/kubelet.sock")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Raises Invalid when a value is out of its bounds.

    node: id of the node, as in `nodes/{node}`. address: where other nodes reach the ranks of this one.
    collector, scheduler, recovery, autoscaler: gRPC addresses (host:port). Recovery's is handed to the launchers, empty: the one
    that the scheduler names; the autoscaler's to replicas of inference services, empty: they serve unseen by it.
    state_dir: the agent's own folder; spool, launchers and simulated faults live there.
    sim_gpus: simulated GPUs, 0 to 16; 0 means that the node has none. sim_profile, sim_workload: of which model, and what they do.
    sim_script: a file with faults for them, as `switchgear.sim.faults` describes.
    interval_s: time between samples, 0.05 to 60. metrics: HOST:PORT of `/metrics`; port 0 takes a free one.
    host_metrics: whether `/metrics` shows `node_*`. pod_resources: the kubelet's socket, which need not be there.
    hpc_job_mapping_dir: folder in which files named by GPU hold ids of jobs.
    spool_mb: mebibytes of samples kept on disk while the collector is away, 1 to 10,240; events have a place of their own.
    kernel_log: a text file to follow instead of `/dev/kmsg`; simulated GPUs bring their own.
    warm_kinds: kinds of jobs for which a launcher is kept warm, 0 to 2; each takes some hundred megabytes.
    labels: what selectors of jobs name, as (key, value).
    launcher_command: how a launcher is called. tls: how this node proves itself; None: the services are plain, on loopback.
    """

    node: str
    collector: str
    scheduler: str
    recovery: str
    autoscaler: str
    state_dir: Path
    address: str = "127.0.0.1"
    sim_gpus: int = 0
    sim_profile: str = profiles.DEFAULT
    sim_workload: str = workloads.DEFAULT
    sim_script: Path | None = None
    interval_s: float = 1.0
    metrics: str = "127.0.0.1:0"
    host_metrics: bool = True
    spool_mb: int = 64
    kernel_log: Path | None = None
    pod_resources: Path = POD_RESOURCES
    hpc_job_mapping_dir: Path | None = None
    tls: TlsFiles | None = None
    warm_kinds: int = 1
    labels: tuple[tuple[str, str], ...] = ()
    launcher_command: tuple[str, ...] = (sys.executable, "-m", "switchgear.launcher")

    def __post_init__(self) -> None:
        names.check_id(self.node, "node")
        _require(0 <= self.sim_gpus <= profiles.GPUS_MAX, "sim_gpus", f"must be 0 to {profiles.GPUS_MAX}")
        profiles.profile(self.sim_profile)
        _require(self.sim_workload in workloads.WORKLOADS, "sim_workload", f"must be one of {workloads.WORKLOADS}")
        _require(
            self.sim_script is None or self.sim_gpus > 0, "sim_script", "is for simulated GPUs: give --sim-gpus too"
        )
        _require(0.05 <= self.interval_s <= 60, "interval_s", "must be 0.05 to 60 seconds")
        _require(1 <= self.spool_mb <= 10_240, "spool_mb", "must be 1 to 10240 mebibytes")
        _require(0 <= self.warm_kinds <= KINDS_MAX, "warm_kinds", f"must be 0 to {KINDS_MAX}")
        for field in ("collector", "scheduler", "recovery", "autoscaler"):
            address = getattr(self, field)
            host, _, port = address.rpartition(":")
            left_out = not address and field in ("recovery", "autoscaler")
            _require(
                left_out or (bool(host) and port.isdigit()), field, "must be HOST:PORT, for example 127.0.0.1:7070"
            )


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise Invalid(f"{field} {message}", Reason.BAD_FIELD, field=field)
