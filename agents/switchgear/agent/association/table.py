"""The table of who uses which GPU, from all that tell of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from switchgear.agent.association.identity import Marks, Owner
from switchgear.agent.association.kubernetes import Place
from switchgear.agent.association.slurm import UNKNOWN, SlurmJob
from switchgear.agent.messages import NAME_CHARS_MAX
from switchgear.agent.sources.gpu import Process
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Of one user of one GPU; more are not told.
PIDS_MAX = 64
#: Of one GPU or instance; more are not told.
USERS_MAX = 64
ASSOCIATIONS_MAX = 1024
#: The labels of a GPU's series at `/metrics`: dcgm-exporter's, then ours (`job` is Prometheus' own).
_LABELS = (
    ("pod", "pod"),
    ("namespace", "namespace"),
    ("container", "container"),
    ("pod_uid", "pod_uid"),
    ("hpc_job", "hpc_job"),
    ("switchgear_job", "job"),
)
_NOBODY = Owner()
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Association:
    """One user of one GPU, or of one MIG instance of it. pids: sorted, none when it was given the GPU and has not begun.

    slurm: what else is known of `owner.hpc_job`.
    """

    place: Place
    owner: Owner
    pids: tuple[int, ...]
    since_unix_ns: int
    slurm: SlurmJob = UNKNOWN

    @property
    def labels(self) -> Labels:
        return tuple((label, text) for label, field in _LABELS if (text := getattr(self.owner, field)))


def associate(
    processes: Mapping[int, Sequence[Process]],
    marks: Mapping[int, Marks],
    containers: Mapping[str, Owner],
    given: Iterable[tuple[Place, Owner]],
    *,
    slurm_jobs: Mapping[str, SlurmJob] | None = None,
    before: Sequence[Association] = (),
    now_unix_ns: int,
) -> tuple[Association, ...]:
    """The table, in the order of its places.

    processes: what each GPU's driver reports. marks: of those that live. containers: names of containers by id. given: who was given
    a GPU by Kubernetes or by a prolog. slurm_jobs: what a prolog said of jobs by id; it wins over environments, which users can set.
    before: the last table, of which times are kept.
    """
    slurm = dict(slurm_jobs or {})
    for one in marks.values():
        if one.hpc_job:
            slurm[one.hpc_job] = slurm.get(one.hpc_job, UNKNOWN).or_else(one.slurm)
    users = dict[Place, dict[Owner, list[int]]]()
    for place, owner in given:
        _add(users.setdefault(place, {}), owner)
    for gpu, reported in processes.items():
        for pid, mig, _ in reported:
            if pid in marks:
                here = users.setdefault(Place(gpu, mig), {})
                _add(here, _owner(marks[pid], containers, here), pid)
    since_unix_ns = {(one.place, one.owner): one.since_unix_ns for one in before}
    table = [
        Association(
            place,
            owner,
            tuple(sorted(set(pids))[:PIDS_MAX]),
            since_unix_ns.get((place, owner), now_unix_ns),
            slurm.get(owner.hpc_job, UNKNOWN),
        )
        for place, owners in users.items()
        for owner, pids in owners.items()
    ]
    table.sort(key=lambda one: (one.place.gpu, -1 if one.place.mig is None else one.place.mig, one.labels))
    return tuple(table[:ASSOCIATIONS_MAX])


def to_proto(table: Iterable[Association]) -> pb.Associations:
    """The message to the collector."""
    return pb.Associations(
        associations=[
            pb.Association(
                gpu=one.place.gpu,
                mig_gpu_instance=one.place.mig,
                job=one.owner.job,
                pod=one.owner.pod[:NAME_CHARS_MAX],
                namespace=one.owner.namespace[:NAME_CHARS_MAX],
                container=one.owner.container[:NAME_CHARS_MAX],
                pod_uid=one.owner.pod_uid,
                hpc_job=one.owner.hpc_job,
                pids=one.pids,
                since_unix_ns=one.since_unix_ns,
                slurm=_slurm_to_proto(one.slurm),
            )
            for one in table
        ]
    )


def _slurm_to_proto(job: SlurmJob) -> pb.SlurmJob | None:
    if job == UNKNOWN:
        return None
    return pb.SlurmJob(
        user=job.user,
        account=job.account,
        partition=job.partition,
        qos=job.qos,
        array_job=job.array_job,
        array_task=job.array_task,
        het_job=job.het_job,
        het_offset=job.het_offset,
    )


def labels_by_place(table: Iterable[Association]) -> dict[tuple[str, str], Labels]:
    """For the series of each GPU or instance that has exactly one known user: of two nobody can say whose a value is."""
    known = dict[Place, list[Association]]()
    for one in table:
        if one.owner != _NOBODY:
            known.setdefault(one.place, []).append(one)
    return {
        (str(place.gpu), "" if place.mig is None else str(place.mig)): users[0].labels
        for place, users in known.items()
        if len(users) == 1
    }


def _owner(marks: Marks, containers: Mapping[str, Owner], here: Mapping[Owner, object]) -> Owner:
    """With the pod's names from its container's, or from the only pod that was given this GPU."""
    owner = containers.get(marks.container_id, _NOBODY)
    if marks.container_id and not marks.pod_uid:  # of an engine alone, whose short ids people know
        owner = Owner(container=marks.container_id[:12])
    elif marks.pod_uid and not owner.pod:
        pods = [one for one in here if one.pod]
        owner = pods[0] if len(pods) == 1 and pods[0].pod_uid in ("", marks.pod_uid) else _NOBODY
    return replace(owner, job=marks.job, hpc_job=marks.hpc_job or owner.hpc_job, pod_uid=marks.pod_uid)


def _add(here: dict[Owner, list[int]], owner: Owner, *pids: int) -> None:
    """Adds a user, or tells more about one that is there already."""
    for one in here:
        if (merged := _merged(one, owner)) is not None:
            found = here.pop(one)
            here.setdefault(merged, []).extend((*found, *pids))
            return
    if len(here) < USERS_MAX:
        here[owner] = list(pids)


def _merged(one: Owner, other: Owner) -> Owner | None:
    """Both as one, when they share something and contradict each other in nothing."""
    if one == other:
        return one
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Owner)]
    if any(a and b and a != b for a, b in pairs) or not any(a and a == b for a, b in pairs):
        return None
    return Owner(*(a or b for a, b in pairs))
