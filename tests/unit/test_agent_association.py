"""Whose a process is, and who uses which GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.agent.association.identity import Marks, Owner, marks_of
from switchgear.agent.association.job_mapping import Given, mapped_jobs
from switchgear.agent.association.kubernetes import DeviceIds, Place, PodResources, container_owners
from switchgear.agent.association.processes import Processes
from switchgear.agent.association.table import (
    ASSOCIATIONS_MAX,
    PIDS_MAX,
    USERS_MAX,
    Association,
    associate,
    labels_by_place,
    to_proto,
)
from switchgear.collector.messages import associations_of

UID = "3f0c4a52-7d1e-4c55-9b8a-0e6f1a2b3c4d"
UID_ = UID.replace("-", "_")
ID = "0123456789abcdef" * 4
NOW_NS = 1_700_000_000_000_000_000
POD = Owner(pod="trainer-0", namespace="ml", container="main")


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/kubepods/burstable/pod{UID}/{ID}",
        f"0::/kubepods/pod{UID}/{ID}",  # guaranteed
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope/container",
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/docker-{ID}.scope",
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
        f"0::/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"12:pids:/\n5:devices:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/user.slice",
    ],
)
def test_a_pod_is_known_by_its_cgroup(cgroup: str) -> None:
    assert marks_of(cgroup + "\n", b"") == Marks(pod_uid=UID, container_id=ID)


def test_a_static_pod_has_a_hash_for_a_uid() -> None:
    assert marks_of(f"0::/kubepods/burstable/pod{ID[:32]}/{ID}\n", b"").pod_uid == ID[:32]


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0",
        "0::/system.slice/n1_slurmstepd.scope/job_17/step_batch/user/task_special",
        "4:memory:/slurm/uid_1000/job_17/step_0/task_0\n2:cpu:/",
        "4:devices:/slurm_n1/uid_1000/job_17/step_extern",
        "0::/system.slice/slurmstepd.scope/job_17",
    ],
)
def test_a_slurm_job_is_known_by_its_cgroup_whatever_the_environment_says(cgroup: str) -> None:
    assert marks_of(cgroup + "\n", b"SLURM_JOB_ID=18\0").hpc_job == "17"


def test_the_environment_tells_the_job_where_the_cgroup_does_not() -> None:
    environment = b"PATH=/bin\0SLURM_JOB_ID=17\0SWITCHGEAR_JOB=jobs/llama\0PWD=/=\0"
    assert marks_of("0::/user.slice\n", environment) == Marks(job="jobs/llama", hpc_job="17")


@pytest.mark.parametrize(
    ("cgroup", "environment"),
    [
        ("", b""),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", b"SLURM_JOB_ID\0=\0"),
        ("0::/kubepods/podium/x\n", b"SLURM_JOB_ID=17;rm\0SWITCHGEAR_JOB=nodes/a\0"),
        ("0::/job_17/slurmish\n", b"SWITCHGEAR_JOB=jobs/\xff\0SLURM_JOB_ID=" + b"1" * 40 + b"\0"),
        (f"0::/kubepods/pod{UID}x/{ID}0\n", b"SWITCHGEAR_JOB=jobs/a/b\0"),
    ],
)
def test_what_is_no_mark_is_none(cgroup: str, environment: bytes) -> None:
    assert marks_of(cgroup, environment) == Marks()


class Proc:
    """A /proc of a test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(
        self, pid: int, *, parent: int = 1, start: int = 100, cgroup: str = "0::/\n", environment: bytes = b""
    ) -> Path:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        fields = ["S", str(parent), *["0"] * 17, str(start), "0"]
        (folder / "stat").write_text(f"{pid} (a) b ({pid}) {' '.join(fields)}\n")
        (folder / "cgroup").write_text(cgroup)
        (folder / "environ").write_bytes(environment)
        return folder


def test_a_rank_belongs_to_the_job_of_the_launcher_above_it(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.put(10)
    proc.put(11, parent=10)
    proc.put(12, parent=11, environment=b"SLURM_JOB_ID=17\0")
    proc.put(13, parent=1)
    marks = Processes(lambda: {10: "jobs/llama"}, tmp_path).marks([12, 13])
    assert marks == {12: Marks(job="jobs/llama", hpc_job="17"), 13: Marks()}


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.put(11, parent=12)
    proc.put(12, parent=11)
    assert Processes(lambda: {10: "jobs/llama"}, tmp_path).marks([12]) == {12: Marks()}


def test_a_process_is_read_once_and_another_one_with_its_pid_again(tmp_path: Path) -> None:
    proc, processes = Proc(tmp_path), Processes(dict, tmp_path)
    proc.put(12, environment=b"SLURM_JOB_ID=17\0")
    assert processes.marks([12])[12].hpc_job == "17"
    proc.put(12, environment=b"SLURM_JOB_ID=18\0")
    assert processes.marks([12])[12].hpc_job == "17"
    proc.put(12, environment=b"SLURM_JOB_ID=18\0", start=200)
    assert processes.marks([12])[12].hpc_job == "18"


def test_an_environment_is_read_up_to_a_bound(tmp_path: Path) -> None:
    Proc(tmp_path).put(12, environment=b"A=" + b"a" * 70_000 + b"\0SLURM_JOB_ID=17\0")
    assert Processes(dict, tmp_path).marks([12]) == {12: Marks()}


def test_what_has_ended_or_may_not_be_read_has_no_marks(tmp_path: Path) -> None:
    folder = Proc(tmp_path).put(12, cgroup="0::/system.slice/slurmstepd.scope/job_17/step_0\n")
    (folder / "environ").unlink()
    assert Processes(dict, tmp_path).marks([12, 99]) == {12: Marks(hpc_job="17")}


@pytest.mark.parametrize(
    ("device_id", "place"),
    [
        ("GPU-a", Place(0)),
        ("GPU-b::3", Place(1)),
        ("MIG-GPU-b/5/0", Place(1, 5)),
        ("nvidia1", Place(1)),
        ("nvidia1/gi5", Place(1, 5)),
        ("nvidia1/vgpu0", Place(1)),
        ("0000:1B:00.0", Place(1)),
        ("nvidia9", None),
        ("GPU-c", None),
        ("MIG-1a2b", None),
        ("", None),
    ],
)
def test_device_plugins_name_gpus_in_several_ways(device_id: str, place: Place | None) -> None:
    assert DeviceIds({"GPU-a": 0, "GPU-b": 1}, {"0000:1a:00": 0, "0000:1b:00": 1}).place(device_id) == place


def test_names_of_a_container_are_in_the_name_of_its_log(tmp_path: Path) -> None:
    (tmp_path / f"trainer-0_ml_my-main-{ID}.log").touch()
    (tmp_path / "no-container.log").touch()
    assert container_owners([ID, "f" * 64], tmp_path) == {
        ID: Owner(pod="trainer-0", namespace="ml", container="my-main")
    }
    assert container_owners([ID], tmp_path / "missing") == {}


def test_jobs_are_in_the_files_of_a_prolog(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("17\n18\n\n")
    (tmp_path / "1.5").write_text("19")
    (tmp_path / "README").write_text("20")
    (tmp_path / "2").write_bytes(b"\xff\xfe not an id\n")
    (tmp_path / "3").mkdir()
    assert list(mapped_jobs(tmp_path)) == [
        Given(Owner(hpc_job="17"), (Place(0),)),
        Given(Owner(hpc_job="18"), (Place(0),)),
        Given(Owner(hpc_job="19"), (Place(1, 5),)),
    ]
    assert list(mapped_jobs(tmp_path / "missing")) == []


def test_processes_of_one_job_are_one_user_and_keep_their_time() -> None:
    processes = {0: [(10, None, 5), (11, None, None)], 1: [(12, None, None)]}
    marks = {10: Marks(hpc_job="17"), 11: Marks(hpc_job="17"), 12: Marks(job="jobs/a")}
    first = associate(processes, marks, {}, [], now_unix_ns=NOW_NS)
    assert first == (
        Association(Place(0), Owner(hpc_job="17"), (10, 11), NOW_NS),
        Association(Place(1), Owner(job="jobs/a"), (12,), NOW_NS),
    )
    later = associate({0: [(11, None, None)]}, marks, {}, [], before=first, now_unix_ns=NOW_NS + 9)
    assert later == (Association(Place(0), Owner(hpc_job="17"), (11,), NOW_NS),)


def test_a_pod_that_was_given_a_gpu_is_its_user_before_its_process_is_there() -> None:
    (one,) = associate({0: []}, {}, {}, [(Place(0), POD)], now_unix_ns=NOW_NS)
    assert one == Association(Place(0), POD, (), NOW_NS)


@pytest.mark.parametrize("containers", [{}, {ID: POD}])
def test_a_pods_process_and_what_the_kubelet_says_are_one_user(containers: dict[str, Owner]) -> None:
    marks = {10: Marks(pod_uid=UID, container_id=ID)}
    (one,) = associate({0: [(10, None, None)]}, marks, containers, [(Place(0), POD)], now_unix_ns=NOW_NS)
    assert one.owner == Owner(pod="trainer-0", namespace="ml", container="main", pod_uid=UID)
    assert one.pids == (10,)


def test_of_two_pods_on_a_gpu_a_process_without_names_is_neither() -> None:
    other = Owner(pod="other", namespace="ml", container="main")
    marks = {10: Marks(pod_uid=UID, container_id=ID)}
    table = associate({0: [(10, None, None)]}, marks, {}, [(Place(0), POD), (Place(0), other)], now_unix_ns=NOW_NS)
    assert {one.owner for one in table} == {POD, other, Owner(pod_uid=UID)}


def test_a_prologs_job_and_the_process_that_bears_it_are_one_user() -> None:
    marks = {10: Marks(job="jobs/a", hpc_job="17")}
    (one,) = associate({0: [(10, None, None)]}, marks, {}, [(Place(0), Owner(hpc_job="17"))], now_unix_ns=NOW_NS)
    assert one.owner == Owner(job="jobs/a", hpc_job="17")


def test_a_container_of_an_engine_alone_is_named_by_its_short_id() -> None:
    (one,) = associate({0: [(10, None, None)]}, {10: Marks(container_id=ID)}, {}, [], now_unix_ns=NOW_NS)
    assert one.labels == (("container", ID[:12]),)


def test_labels_are_those_of_the_only_known_user() -> None:
    marks = {10: Marks(hpc_job="17"), 11: Marks(), 12: Marks(hpc_job="18"), 13: Marks(hpc_job="19")}
    processes = {
        0: [(10, None, None), (11, None, None)],
        1: [(12, 1, None), (13, 2, None)],
        2: [(12, None, 1), (13, None, 1)],
    }
    table = associate(processes, marks, {}, [], now_unix_ns=NOW_NS)
    assert labels_by_place(table) == {
        ("0", ""): (("hpc_job", "17"),),
        ("1", "1"): (("hpc_job", "18"),),
        ("1", "2"): (("hpc_job", "19"),),
    }


def test_the_table_is_bounded() -> None:
    processes = {gpu: [(gpu * 1000 + number, number, None) for number in range(200)] for gpu in range(8)}
    marks = {pid: Marks() for reported in processes.values() for pid, _, _ in reported}
    assert len(associate(processes, marks, {}, [], now_unix_ns=NOW_NS)) == ASSOCIATIONS_MAX
    (one,) = associate(
        {0: [(n, None, None) for n in range(100)]}, {n: Marks() for n in range(100)}, {}, [], now_unix_ns=1
    )
    assert len(one.pids) == PIDS_MAX


def test_the_message_says_all_of_it() -> None:
    marks = {10: Marks(job="jobs/a", pod_uid=UID, container_id=ID)}
    table = associate({0: [(10, 5, None)]}, marks, {ID: POD}, [], now_unix_ns=NOW_NS)
    (one,) = to_proto(table).associations
    assert (one.gpu, one.mig_gpu_instance, one.job, one.pod, one.namespace) == (0, 5, "jobs/a", "trainer-0", "ml")
    assert (one.container, one.pod_uid, list(one.pids), one.since_unix_ns) == ("main", UID, [10], NOW_NS)


def test_a_kubelet_that_names_a_gpu_for_thousands_of_pods_costs_a_bounded_table_that_the_collector_takes() -> None:
    given = [(Place(0), Owner(pod=f"{number}-{300 * 'x'}", namespace="ml")) for number in range(1000)]
    table = associate({}, {}, {}, given, now_unix_ns=NOW_NS)
    assert len(table) == USERS_MAX
    assert len(associations_of(to_proto(table))) == USERS_MAX


def test_a_kubelet_whose_socket_may_not_be_looked_at_is_none_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pods = PodResources(
        tmp_path / (300 * "x")
    )  # another error than that of a folder only for root, which root never gets
    assert [pods.list(DeviceIds({}, {})) for _ in range(2)] == [[], []]
    assert sum("kubelet" in record.message for record in caplog.records) == 1
