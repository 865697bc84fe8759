"""Who uses the GPUs, from real processes, a kubelet's socket and a prolog's files to the collector's message and the labels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from switchgear.agent.association.identity import Owner
from switchgear.agent.association.kubernetes import METHOD, Place
from switchgear.agent.association.sources import AssociationSource, Board, GpuProcessSource, UserMetrics
from switchgear.agent.sources.gpu import Process
from switchgear.core.clock import ManualClock
from switchgear.kubelet import pod_resources_pb2 as pb
from switchgear.sim.gpus import SimulatedGpus


class Kubelet(grpc.GenericRpcHandler):
    """Serves the pod-resources API on a Unix socket, as the kubelet does."""

    def __init__(self, socket: Path) -> None:
        self.answer = pb.ListPodResourcesResponse()
        self.calls = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        self._server.add_generic_rpc_handlers([self])
        self._server.add_insecure_port(f"unix://{socket}")
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._list, pb.ListPodResourcesRequest.FromString, pb.ListPodResourcesResponse.SerializeToString
        )

    def _list(self, request: pb.ListPodResourcesRequest, context: Any) -> pb.ListPodResourcesResponse:
        self.calls += 1
        return self.answer

    def give(self, pod: str, *device_ids: str) -> None:
        devices = pb.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=device_ids)
        container = pb.ContainerResources(name="main", devices=[devices])
        self.answer.pod_resources.append(pb.PodResources(name=pod, namespace="ml", containers=[container]))

    def close(self) -> None:
        self._server.stop(0).wait()


class Gpus(SimulatedGpus):
    """Simulated GPUs on which the test's processes run."""

    on: dict[int, list[Process]]

    def processes(self, index: int) -> Sequence[Process]:
        if index not in self.on:
            raise OSError("GPU is lost")
        return self.on[index]


class World:
    def __init__(self, folder: Path) -> None:
        self.socket = folder / "kubelet.sock"
        self.mapping = folder / "mapping"
        self.mapping.mkdir()
        self.gpus = Gpus("n1", 2, folder, ManualClock())
        self.gpus.on = {0: [], 1: []}
        self.board = Board()
        self.launchers = dict[int, str]()
        self.changes = 0
        self.source = AssociationSource(
            self.board,
            self.gpus.devices(),
            launchers=lambda: self.launchers,
            pod_resources=self.socket,
            hpc_job_mapping_dir=self.mapping,
            clock=ManualClock(),
            changed=self._changed,
        )
        self.workers = [GpuProcessSource(self.gpus, device, self.board) for device in self.gpus.devices()]

    def tick(self) -> list[tuple[Place, Owner, tuple[int, ...]]]:
        for worker in self.workers:
            worker.sample()
        self.source.sample()
        return [(one.place, one.owner, one.pids) for one in self.source.table.associations]

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def slurm_process() -> Iterator[subprocess.Popen[bytes]]:
    environment = {"SLURM_JOB_ID": "17", "PATH": os.environ["PATH"]}
    process = subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_process_of_slurm_is_a_user_as_long_as_it_lives(world: World, slurm_process: subprocess.Popen[bytes]) -> None:
    world.gpus.on[1] = [(slurm_process.pid, None, 1 << 30)]
    assert world.tick() == [(Place(1), Owner(hpc_job="17"), (slurm_process.pid,))]
    assert world.source.table.labels == {("1", ""): (("hpc_job", "17"),)}
    table = world.source.table
    world.tick()
    assert world.source.table is table
    assert world.changes == 1
    slurm_process.kill()
    slurm_process.wait()
    assert world.tick() == [], "the driver may still report it"
    assert world.changes == 2


def test_a_rank_is_known_by_the_launcher_above_it(world: World, slurm_process: subprocess.Popen[bytes]) -> None:
    world.launchers[os.getpid()] = "jobs/llama"
    world.gpus.on[0] = [(slurm_process.pid, None, None)]
    assert world.tick() == [(Place(0), Owner(job="jobs/llama", hpc_job="17"), (slurm_process.pid,))]


def test_instances_have_users_of_their_own_and_a_lost_gpu_has_none(world: World) -> None:
    world.gpus.on[0] = [(os.getpid(), 1, None), (os.getpid(), 2, None), (1, 1, None)]
    assert [place for place, _, _ in world.tick()] == [Place(0, 1), Place(0, 2)]
    del world.gpus.on[0]
    with pytest.raises(OSError, match="lost"):
        world.workers[0].sample()
    world.source.sample()
    assert world.source.table.associations == ()


def test_pods_are_users_from_the_moment_they_are_given_a_gpu(world: World) -> None:
    assert world.tick() == [], "there is no kubelet"
    kubelet = Kubelet(world.socket)
    try:
        kubelet.give("trainer-0", world.gpus.devices()[1].uuid, "GPU-of-another-node")
        pod = Owner(pod="trainer-0", namespace="ml", container="main")
        assert world.tick() == [(Place(1), pod, ())]
        assert world.source.table.labels["1", ""] == (("pod", "trainer-0"), ("namespace", "ml"), ("container", "main"))
        del kubelet.answer.pod_resources[:]
        assert world.tick() == []
    finally:
        kubelet.close()


def test_a_kubelet_that_does_not_answer_hides_nothing_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.socket.touch()
    (world.mapping / "0").write_text("17\n")
    (world.mapping / "7").write_text("a GPU that this node has not\n")
    for _ in range(2):
        assert world.tick() == [(Place(0), Owner(hpc_job="17"), ())]
    assert sum("kubelet" in record.message for record in caplog.records) == 1


def test_each_user_of_a_shared_gpu_is_told_at_metrics(world: World) -> None:
    (world.mapping / "0").write_text("17\n18\n")
    world.tick()
    (family,) = UserMetrics(lambda: world.source.table).collect()
    assert [sample.labels["hpc_job"] for sample in family.samples] == ["17", "18"]
    assert world.source.table.labels == {}
