"""The environment of a rank: what torchrun would give it, and a few names of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import launcher_service_pb2 as pb


def rank_environment(
    inherited: Mapping[str, str],
    spec: JobSpec,
    start: pb.StartAttempt,
    *,
    job: str,
    generation: int,
    local_rank: int,
    gpu_indices: Sequence[int] | None,
    checkpoint_directory: str,
    error_file: str = "",
    address: str = "",
    autoscaler: str = "",
) -> dict[str, str]:
    """The whole environment of one rank; the job's own variables win over what is inherited, ours over the job's.

    inherited: the launcher's environment. gpu_indices: None leaves CUDA_VISIBLE_DEVICES alone; all ranks of a node see all of its
    GPUs and choose by LOCAL_RANK, as under torchrun. error_file: for torch's `record`; empty: none.
    address, autoscaler: for a replica of an inference service: where it is reached, and to whom it reports.
    """
    rank = start.first_rank + local_rank
    # As under torchrun: several ranks that each take all cores starve each other, a single one may have them.
    threads = {"OMP_NUM_THREADS": "1"} if spec.nproc_per_node > 1 else {}
    env = {
        **threads,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        **inherited,
        **spec.environment,
        "RANK": str(rank),
        "LOCAL_RANK": "0" if spec.virtual_local_rank else str(local_rank),
        "WORLD_SIZE": str(start.world_size),
        "LOCAL_WORLD_SIZE": str(spec.nproc_per_node),
        "GROUP_RANK": str(start.node_rank),
        "GROUP_WORLD_SIZE": str(start.nnodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(start.world_size),
        "ROLE_NAME": spec.role or "default",
        "MASTER_ADDR": start.master_address,
        "MASTER_PORT": str(start.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(start.restart_count),
        "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
        # `--rdzv-id` may be any text, which the name of a job may not.
        "TORCHELASTIC_RUN_ID": spec.environment.get("TORCHELASTIC_RUN_ID") or job.rpartition("/")[2],
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 serves the store of this attempt itself
        "SWITCHGEAR_JOB": job,
        "SWITCHGEAR_GENERATION": str(generation),
        "SWITCHGEAR_CHECKPOINT_DIR": checkpoint_directory,
        "SWITCHGEAR_RESUME_FROM": start.resume_path,
    }
    if spec.workload == JobSpec.INFERENCE:
        env["SWITCHGEAR_NODE_ADDRESS"] = address
        if autoscaler:
            env["SWITCHGEAR_AUTOSCALER"] = autoscaler
    if error_file:
        env["TORCHELASTIC_ERROR_FILE"] = error_file
    if gpu_indices is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpu_indices))
    if spec.virtual_local_rank:
        visible = [device for device in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]
        env["CUDA_VISIBLE_DEVICES"] = visible[local_rank] if local_rank < len(visible) else str(local_rank)
    return env
