"""What a launcher is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from switchgear.launcher.lease import Lease
from switchgear.launcher.logs import EchoRule
from switchgear.v1.job_service_pb2 import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherSettings:
    """What a launcher is started with.

    job, node: resource names. gpu_indices: None leaves CUDA_VISIBLE_DEVICES alone. state_dir: private to (node, job). python:
    interpreter of the ranks when the spec names none; empty: our own. echo: what of the ranks' output is copied to ours. lease: what ranks may
    run on; None: for ever, since nobody else could start the job meanwhile (standalone), or because a second replica does no harm.
    autoscaler: gRPC address for replicas of inference services.
    """

    job: str
    node: str
    placement_epoch: int
    address: str
    gpu_indices: tuple[int, ...] | None
    spec: JobSpec
    state_dir: Path
    python: str = ""
    echo: EchoRule | None = None
    lease: Lease | None = None
    autoscaler: str = ""
