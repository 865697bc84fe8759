"""MIG: the GPU instances that a GPU is cut into. They come and go while the driver runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from switchgear.agent.nvml import calls, library
from switchgear.agent.nvml.gpm import Gpm, open_gpm
from switchgear.agent.nvml.library import Nvml, code_of
from switchgear.agent.sources.gpu import Labels, Value

_NAME = re.compile(r"\bMIG (\S+)")


@dataclass(frozen=True, slots=True)
class _Instance:
    labels: Labels
    memory: calls.Reader
    gpm: Gpm | None


class Mig:
    """The GPU instances of one GPU, each with its memory and, where the GPU has GPM, what its parts did."""

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._instances = dict[int, _Instance]()

    def refresh(self) -> None:
        """Takes in instances that were made or destroyed since. Raises NVMLError for what concerns the whole GPU or driver."""
        present = dict(self._find())
        for gone in self._instances.keys() - present.keys():
            self._close(self._instances.pop(gone))
        for id_, handle in present.items():
            if id_ not in self._instances:
                self._instances[id_] = self._open(id_, handle)

    def read(self) -> Iterator[Value]:
        for id_, instance in list(self._instances.items()):
            try:
                memory = instance.memory.read()
            except self._nvml.Error as error:
                if code_of(error) != library.INVALID_ARGUMENT:
                    raise
                # It was destroyed a moment ago, and another may have its id by now.
                self._close(self._instances.pop(id_))
                continue
            for metric, _, value in memory:
                yield metric, instance.labels, value
            if instance.gpm is not None:
                yield from self._read_gpm(instance.gpm, instance.labels)

    def close(self) -> None:
        for instance in self._instances.values():
            self._close(instance)
        self._instances.clear()

    def _read_gpm(self, gpm: Gpm, labels: Labels) -> Iterator[Value]:
        try:
            for metric, value in gpm.read():
                yield metric, labels, value
        except self._nvml.Error as error:
            if code_of(error) in library.LOST | library.BROKEN:
                raise

    def _find(self) -> Iterator[tuple[int, Any]]:
        """Id and a handle of each GPU instance; several compute instances in one share its memory and its counters."""
        py = self._nvml.py
        seen = set[int]()
        try:
            if not py.nvmlDeviceGetMigMode(self._handle)[0]:
                return
            count = py.nvmlDeviceGetMaxMigDeviceCount(self._handle)
        except self._nvml.Error as error:
            if code_of(error) in library.LOST | library.BROKEN:
                raise
            return
        for position in range(count):
            try:
                handle = py.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, position)
                id_ = int(py.nvmlDeviceGetGpuInstanceId(handle))
            except self._nvml.Error as error:
                if code_of(error) in library.LOST | library.BROKEN:
                    raise
                continue  # no instance at this position
            if id_ not in seen:
                seen.add(id_)
                yield id_, handle

    def _open(self, id_: int, handle: Any) -> _Instance:
        labels = (("GPU_I_PROFILE", self._profile(handle)), ("GPU_I_ID", str(id_)))
        return _Instance(
            labels, calls.Reader(self._nvml, handle, calls.MEMORY), open_gpm(self._nvml, self._handle, id_)
        )

    def _profile(self, handle: Any) -> str:
        """`1g.10gb` and the like."""
        py = self._nvml.py
        try:
            if match := _NAME.search(py.nvmlDeviceGetName(handle)):
                return match.group(1)
            attributes = py.nvmlDeviceGetAttributes_v2(handle)
        except self._nvml.Error as error:
            if code_of(error) in library.LOST | library.BROKEN:
                raise
            return ""
        return f"{attributes.gpuInstanceSliceCount}g.{round(attributes.memorySizeMB / 1024)}gb"

    def _close(self, instance: _Instance) -> None:
        if instance.gpm is not None:
            instance.gpm.close()
