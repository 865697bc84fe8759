"""From the drivers' process lists to the table of who uses the GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from switchgear.agent.association.identity import Owner
from switchgear.agent.association.job_mapping import Given, mapped_jobs
from switchgear.agent.association.kubernetes import DeviceIds, Place, PodResources, container_owners
from switchgear.agent.association.processes import Processes
from switchgear.agent.association.table import Association, Labels, associate, labels_by_place
from switchgear.agent.readings import Reading
from switchgear.agent.sources.gpu import GpuDevice, GpuDriver, Process, normal_pci
from switchgear.core.clock import Clock

#: Between looks at the processes of the GPUs and at what the kubelet and prologs say: jobs come and go in minutes.
PERIOD_S = 5.0
#: Of one GPU; a driver reports far fewer.
PROCESSES_MAX = 256


class Board:
    """The newest list of processes of each GPU: written by the GPUs' workers, read by the one that looks processes up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[int, Sequence[Process]] = {}

    def put(self, gpu: int, processes: Sequence[Process]) -> None:
        with self._lock:
            self._processes[gpu] = processes

    def processes(self) -> dict[int, Sequence[Process]]:
        with self._lock:
            return dict(self._processes)


class GpuProcessSource:
    """Puts the processes that the driver reports on a GPU on the board; in the GPU's own worker, since the call may hang.

    It has no readings: a driver says "none" of a lost GPU as well.
    """

    period_s = PERIOD_S

    def __init__(self, driver: GpuDriver, device: GpuDevice, board: Board) -> None:
        self.name = f"gpu-{device.index}-processes"
        self._driver = driver
        self._index = device.index
        self._board = board

    def sample(self) -> list[Reading]:
        processes: Sequence[Process] = ()
        try:
            processes = list(self._driver.processes(self._index))[:PROCESSES_MAX]
        finally:  # when the driver does not tell, yesterday's users are no answer
            self._board.put(self._index, processes)
        return []


@dataclass(frozen=True, slots=True)
class Table:
    """What is known at one moment. labels: by GPU index and MIG GPU instance, as `/metrics` shows them."""

    associations: tuple[Association, ...] = ()
    labels: Mapping[tuple[str, str], Labels] = field(default_factory=dict)


class AssociationSource:
    """Keeps the table; `table` may be read from any thread, and is another object only when something has changed.

    It has a worker of its own: the files of a process in trouble may hang, and so may a kubelet.
    launchers: job of each launcher of ours by pid, now. changed: called from the thread that samples, after each change.
    """

    name = "association"
    period_s = PERIOD_S

    def __init__(
        self,
        board: Board,
        devices: Sequence[GpuDevice],
        *,
        launchers: Callable[[], Mapping[int, str]],
        pod_resources: Path,
        hpc_job_mapping_dir: Path | None,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.table = Table()
        self._board = board
        self._ids = DeviceIds(
            {device.uuid: device.index for device in devices},
            {normal_pci(device.pci_bus_id): device.index for device in devices},
        )
        self._processes = Processes(launchers)
        self._pods = PodResources(pod_resources)
        self._mapping = hpc_job_mapping_dir
        self._clock = clock
        self._changed = changed

    def sample(self) -> list[Reading]:
        """Renews the table; the readings are none, since what changes its owner often would never let a dictionary settle."""
        processes = self._board.processes()
        marks = self._processes.marks(pid for reported in processes.values() for pid, _, _ in reported)
        containers = container_owners(one.container_id for one in marks.values() if one.pod_uid)
        before = self.table.associations
        mapped = list(mapped_jobs(self._mapping)) if self._mapping is not None else []
        table = associate(
            processes,
            marks,
            containers,
            self._given(mapped),
            slurm_jobs={given.owner.hpc_job: given.slurm for given in mapped},
            before=before,
            now_unix_ns=self._clock.unix_ns(),
        )
        if table != before:
            self.table = Table(table, labels_by_place(table))
            self._changed()
        return []

    def _given(self, mapped: Iterable[Given]) -> Iterator[tuple[Place, Owner]]:
        yield from self._pods.list(self._ids)
        known_gpus = self._ids.by_uuid.values()
        for given in mapped:
            yield from ((place, given.owner) for place in given.places if place.gpu in known_gpus)


class UserMetrics(Collector):
    """`switchgear_gpu_user_info`: 1 for each user of a GPU, also where several share one."""

    def __init__(self, table: Callable[[], Table]) -> None:
        self._table = table

    def collect(self) -> Iterator[Metric]:
        of_slurm = ("user", "account", "partition", "qos")
        names = (
            *("gpu", "GPU_I_ID", "pod", "namespace", "container", "pod_uid", "hpc_job", "switchgear_job"),
            *(f"hpc_{field}" for field in of_slurm),
        )
        family = GaugeMetricFamily(
            "switchgear_gpu_user_info", "1 for each user of the GPU, or of its MIG instance", labels=names
        )
        for one in self._table().associations:
            mig = "" if one.place.mig is None else str(one.place.mig)
            told = {"gpu": str(one.place.gpu), "GPU_I_ID": mig, **dict(one.labels)}
            told |= {f"hpc_{field}": getattr(one.slurm, field) for field in of_slurm}
            family.add_metric([told.get(name, "") for name in names], 1)
        yield family
