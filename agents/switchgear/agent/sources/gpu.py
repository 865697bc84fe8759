"""GPUs through a driver, of whichever vendor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from switchgear.agent.readings import Reading, SeriesKey, known, series, unknown
from switchgear.agent.sources.gpu_metrics import METRICS

#: What sets one value of a metric apart from the others of the same GPU: (("nvlink", "3"),), (("GPU_I_ID", "5"), …); mostly ().
Labels = tuple[tuple[str, str], ...]
#: Metric, labels, and the value or a sentence why there is none.
Value = tuple[str, Labels, float | str]
#: A process on a GPU: pid, id of its MIG GPU instance or None, bytes of memory or None when the driver does not tell.
Process = tuple[int, int | None, int | None]
_INSTANCE = ("GPU_I_PROFILE", "GPU_I_ID")


class GpuDevice(Protocol):
    """Identity of a GPU, fixed while the agent runs."""

    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def pci_bus_id(self) -> str: ...
    @property
    def simulated(self) -> bool: ...
    @property
    def device_file(self) -> str:
        """Its name below /dev, as tools show it: nvidia0, renderD128."""

    @property
    def driver_version(self) -> str:
        """Of the driver that reads it; "" when it is not told."""


class GpuValues(Protocol):
    """What is known of GPUs."""

    def read(self, index: int, *, slow: bool) -> Iterable[Value]:
        """What the GPU supports of `METRICS`: what changes from second to second, or (slow) what changes seldom."""


class GpuDriver(GpuValues, Protocol):
    """How the GPUs of one vendor are found and read. Calls about one GPU come one after the other, from any thread, and may block for ever."""

    def devices(self) -> Sequence[GpuDevice]: ...

    def processes(self, index: int) -> Iterable[Process]:
        """The processes that the driver reports on this GPU."""


class GpuSource:
    """One GPU's values of one pace; a metric that its driver leaves out is not supported and has no series."""

    def __init__(
        self, driver: GpuValues, device: GpuDevice, hostname: str, *, slow: bool = False, period_s: float = 0.0
    ) -> None:
        self.name = f"gpu-{device.index}{'-slow' if slow else ''}"
        self.period_s = period_s
        self._driver = driver
        self._index = device.index
        self._slow = slow
        self._labels = (
            ("gpu", str(device.index)),
            ("UUID", device.uuid),
            ("pci_bus_id", device.pci_bus_id),
            ("device", device.device_file),
            ("modelName", device.model),
        )
        self._labels_of_node: Labels = (("hostname", hostname),)
        if device.driver_version:
            self._labels_of_node += (("DCGM_FI_DRIVER_VERSION", device.driver_version),)
        self._last = dict[tuple[str, Labels], Reading]()

    def sample(self) -> list[Reading]:
        readings = list[Reading]()
        last = self._last
        for name, labels, value in self._driver.read(self._index, slow=self._slow):
            place = name, labels
            reading = last.get(place)
            if reading is None or reading[1] != value:  # most of them say what they said before
                key = self._key(name, labels) if reading is None else reading.key
                last[place] = reading = unknown(key, value) if isinstance(value, str) else known(key, value)
            readings.append(reading)
        return readings

    def _key(self, name: str, labels: Labels) -> SeriesKey:
        metric = METRICS[name]
        # dcgm-exporter's order: the GPU, the instance of it, the node, and what sets values of the metric apart.
        instance = tuple(label for label in labels if label[0] in _INSTANCE)
        rest = tuple(label for label in labels if label[0] not in _INSTANCE)
        return series(name, metric.unit, metric.kind, *self._labels, *instance, *self._labels_of_node, *rest)


_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.[0-7])?", re.IGNORECASE)


def normal_pci(text: str) -> str:
    """`dddd:bb:dd` in lower case from any spelling of a PCI address, with or without domain and function; "" when it is none."""
    match = _PCI.fullmatch(text)
    if match is None:
        return ""
    domain, bus, device = match.groups(default="0000")
    return f"{domain[-4:]}:{bus}:{device}".lower()
