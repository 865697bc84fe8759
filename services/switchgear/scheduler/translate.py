"""Between the wire and the scheduler's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.core import names, rpc
from switchgear.core.errors import Invalid, Reason
from switchgear.core.warm import WarmKind
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler.model import GpuRecord, Inventory, JobRecord, JobSpec, NodeRecord, NodeStatus, WantedLauncher
from switchgear.scheduler.wishes import LABEL_LENGTH_MAX, LEVELS, TOPOLOGY_PREFIX, wishes_to_proto
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb

#: No board that we know has more than 16; a node cut into MIG slices has more.
GPUS_MAX = 256
#: NVIDIA divides a GPU into at most seven.
MIG_INSTANCES_MAX = 16
#: A node's own and those that people set; each may be asked for by every job.
LABELS_MAX = 64


def clean(text: str, length_max: int) -> str:
    """Text of others as it may be stored and shown: bounded, and without NUL, which PostgreSQL does not take."""
    return text[:length_max].replace("\0", "\N{REPLACEMENT CHARACTER}")


def inventory_from_proto(node: fleet_pb.Node) -> Inventory:
    """Raises Invalid when GPUs are too many or share an index, the address is missing or that of the metrics is none."""
    indices = [gpu.index for gpu in node.gpus]
    if len(indices) > GPUS_MAX or len(set(indices)) < len(indices) or min(indices, default=0) < 0:
        raise Invalid(
            f"gpus must be at most {GPUS_MAX} with different indices from 0 on", Reason.BAD_FIELD, field="node.gpus"
        )
    if not node.address:
        raise Invalid(
            "address is missing: other nodes reach the ranks of this node there", Reason.BAD_FIELD, field="node.address"
        )
    if node.metrics_address:
        _metrics_host(node.metrics_address)
    return Inventory(
        clean(node.address, 255),
        tuple(
            GpuRecord(
                index=gpu.index,
                uuid=clean(gpu.uuid, 100),
                model=clean(gpu.model, 200),
                memory_bytes=gpu.memory_bytes,
                pci_bus_id=clean(gpu.pci_bus_id, 100),
                simulated=gpu.simulated,
                mig_profiles=tuple(sorted(clean(profile, 50) for profile in gpu.mig_profiles[:MIG_INSTANCES_MAX])),
            )
            for gpu in sorted(node.gpus, key=lambda gpu: gpu.index)
        ),
        clean(node.agent_version, 64),
        clean(node.metrics_address, 255),
        cpu_milli=node.cpu_milli if node.cpu_milli > 0 else None,
        memory_mib=node.memory_mib if node.memory_mib > 0 else None,
        labels=labels_from_proto(node.labels),
    )


def labels_from_proto(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Sorted by key. Raises Invalid when there are too many, one is too long, or one is of a level of topology that there is not."""
    if len(labels) > LABELS_MAX:
        raise Invalid(f"a node has at most {LABELS_MAX} labels", Reason.LIMIT_EXCEEDED, field="labels")
    for key, value in labels.items():
        if not key or "\0" in key + value or max(len(key), len(value)) > LABEL_LENGTH_MAX:
            raise Invalid(
                f"label {key[:50]!r}: key and value have at most {LABEL_LENGTH_MAX} characters without NUL, the key at least one",
                Reason.BAD_FIELD,
                field="labels",
            )
        level = key.removeprefix(TOPOLOGY_PREFIX)
        if level != key and level not in LEVELS:
            raise Invalid(
                f"there is no level {level[:50]!r} of topology: there are {', '.join(LEVELS)}",
                Reason.BAD_FIELD,
                field="labels",
            )
    return tuple(sorted(labels.items()))


def peer_host(peer: str) -> str:
    """The host of `ipv4:10.0.0.1:5000` or `ipv6:%5B::1%5D:5000`, as gRPC names its peers; empty for another kind."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(address).rpartition(":")[0].strip("[]").removeprefix("::ffff:")


def metrics_are_its_own(inventory: Inventory, peer_host: str) -> bool:
    """Whether a node that connects from that host says that its metrics are on itself, or nowhere.

    Prometheus goes wherever they are said to be, with a certificate of ours; loopback would be Prometheus' own machine.
    """
    if not inventory.metrics_address:
        return True
    host = _metrics_host(inventory.metrics_address)
    if rpc.is_loopback(host):
        return rpc.is_loopback(peer_host)
    return host in (peer_host, inventory.address.strip("[]"))


def _metrics_host(metrics_address: str) -> str:
    """Raises Invalid when it is no address."""
    return rpc.split_address(metrics_address.removeprefix("https://"))[0].strip("[]")


def node_to_proto(node: NodeRecord, gpus_allocated: int, status: NodeStatus | None = None) -> fleet_pb.Node:
    """status: what its engine sees of it now; None: nothing."""
    return fleet_pb.Node(
        name=node.name,
        state=node.state.value,
        reason=node_life.reason(node),
        actor=node.actor if node.reachable else node_life.ACTOR_POLICY,
        address=node.inventory.address,
        gpus=[
            fleet_pb.Gpu(
                name=names.gpu_name(node.name, gpu.index),
                index=gpu.index,
                uuid=gpu.uuid,
                model=gpu.model,
                memory_bytes=gpu.memory_bytes,
                pci_bus_id=gpu.pci_bus_id,
                simulated=gpu.simulated,
                mig_profiles=gpu.mig_profiles,
            )
            for gpu in node.inventory.gpus
        ],
        gpus_allocated=gpus_allocated,
        agent_version=node.inventory.agent_version,
        last_seen_time=_timestamp(node.last_seen_unix_ns),
        etag=str(node.revision),
        metrics_address=node.inventory.metrics_address,
        labels=node.all_labels,
        taints=sorted(node.taints),
        cpu_milli=node.inventory.cpu_milli or 0,
        memory_mib=node.inventory.memory_mib or 0,
        gpus_foreign=sum(job.gpus for job in status.foreign) if status else 0,
        obstacle=status.obstacle if status else "",
    )


def job_to_proto(job: JobRecord) -> job_pb.Job:
    return job_pb.Job(
        name=job.name,
        spec=spec_to_proto(job.spec),
        state=job.state.value,
        message=job.message,
        placement=job_pb.Placement(
            epoch=job.placement.epoch,
            nodes=[
                job_pb.PlacedNode(
                    node=seat.node,
                    gpu_indices=seat.gpu_indices,
                    address=seat.address,
                    launcher_epoch=seat.launcher_epoch,
                    lost=seat.lost,
                    waits=seat.waits,
                )
                for seat in job.placement.nodes
            ],
        ),
        create_time=_timestamp(job.create_time_unix_ns),
        end_time=None if job.end_time_unix_ns is None else _timestamp(job.end_time_unix_ns),
        etag=str(job.revision),
        trace_parent=job.trace_parent,
        held=job.turn.held,
        leaving=None
        if job.turn.leaving is None
        else job_pb.Leaving(for_job=job.turn.leaving.for_job, by=_timestamp(job.turn.leaving.by_unix_ns)),
        waits_for=[one.job for one in job.turn.waits_for],
        preemptions=job.turn.preemptions,
        lent=None
        if (lent := job.turn.lent) is None
        else job_pb.Lent(to_job=lent.to_job, since=_timestamp(lent.since_unix_ns), gpus=lent.gpus),
        wait_cause=job.turn.cause,
    )


def spec_to_proto(spec: JobSpec) -> job_pb.JobSpec:
    return job_pb.JobSpec(
        argv=spec.argv,
        working_directory=spec.working_directory,
        environment=dict(spec.environment),
        python=spec.python,
        nnodes=spec.nnodes,
        nproc_per_node=spec.nproc_per_node,
        max_restarts=spec.max_restarts,
        checkpoint_directory=spec.checkpoint_directory,
        log_directory=spec.log_directory,
        workload=spec.workload.value,
        preload=spec.preload,
        nnodes_min=spec.nnodes_min,
        no_python=spec.no_python,
        role=spec.role,
        hang_seconds=spec.hang_seconds,
        virtual_local_rank=spec.virtual_local_rank,
        not_before=_timestamp(spec.not_before_unix_ns) if spec.not_before_unix_ns else None,
        **wishes_to_proto(spec),
    )


def start_launcher(launcher: WantedLauncher, recovery_address: str) -> agent_pb.NodeAgentCommand:
    return agent_pb.NodeAgentCommand(
        start_launcher=agent_pb.StartLauncher(
            job=launcher.ref.job,
            placement_epoch=launcher.ref.epoch,
            spec=spec_to_proto(launcher.spec),
            gpu_indices=launcher.gpu_indices,
            recovery_address=recovery_address,
            trace_parent=launcher.trace_parent,
        )
    )


def keep_warm(kinds: Sequence[WarmKind]) -> agent_pb.NodeAgentCommand:
    return agent_pb.NodeAgentCommand(
        keep_warm=agent_pb.KeepWarm(
            kinds=[
                agent_pb.Warm(
                    python=kind.python,
                    working_directory=kind.working_directory,
                    environment=dict(kind.environment),
                    preload=kind.preload,
                )
                for kind in kinds
            ]
        )
    )


def _timestamp(unix_ns: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(unix_ns)
    return timestamp
