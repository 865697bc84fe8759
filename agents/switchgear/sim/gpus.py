"""GPUs that do not exist, for machines without any: they are read, fail and are told apart like real ones.

Everything here says that it is simulated: the model's name, the device's flag, the marker at the end of each kernel-log line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.core.clock import Clock
from switchgear.sim.inject import DEVICES_FILE, FAULTS_FILE, KERNEL_LOG_FILE

log = logging.getLogger(__name__)

MODEL = "Simulated GPU"
MEMORY_BYTES = 80 * 1024**3
#: As many as the largest nodes have.
GPUS_MAX = 16
LOST = "GPU is lost"
_SLOW = frozenset(
    {
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        "DCGM_FI_DEV_ROW_REMAP_FAILURE",
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
    }
)
_POLL_S = 0.05
_XID_LOST = 79
_MARKER = re.compile(r"\[simulated fault (\d+)\]$")
_WORDS = {
    31: "MMU Fault: FAULT_PDE ACCESS_TYPE_VIRT_READ",
    48: "DBE (double bit error)",
    63: "Row remapping pending",
    79: "GPU has fallen off the bus.",
    94: "Contained ECC error",
    95: "Uncontained ECC error",
    119: "Timeout waiting for RPC response from GSP!",
}


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    index: int
    uuid: str
    model: str
    memory_bytes: int
    pci_bus_id: str
    device_file: str
    simulated: bool = True
    driver_version: str = ""


class SimulatedGpus:
    """A GPU driver without GPUs; the values are a function of node, index and time alone.

    state_dir: where faults are injected (`inject_xid`) and where the kernel log is written. Faults last over restarts:
    a lost GPU stays lost as long as the folder lives.
    """

    def __init__(self, node: str, count: int, state_dir: Path, clock: Clock) -> None:
        self._clock = clock
        self._start_s = clock.unix_ns() / 1e9
        self._devices = [_device(node, index) for index in range(count)]
        self._phase = [_phase(node, index) for index in range(count)]
        self._last_xid = [0] * count
        self._faults_path = state_dir / FAULTS_FILE
        self.kernel_log = state_dir / KERNEL_LOG_FILE
        self._faults_read = 0
        self._offset = 0
        self._logged = self._count_logged()
        (state_dir / DEVICES_FILE).write_text(json.dumps({"gpus": count}))
        self._stopping = threading.Event()

    def devices(self) -> Sequence[SimulatedDevice]:
        return self._devices

    def read(self, index: int, *, slow: bool) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float | str]]:
        for name, value in self._values(index).items():
            if (name in _SLOW) == slow:
                yield name, (), value

    def processes(self, index: int) -> tuple[tuple[int, int | None, int | None], ...]:  # noqa: ARG002 - as real drivers
        return ()

    def _values(self, index: int) -> Mapping[str, float | str]:
        values = _values(self._phase[index], self._clock.unix_ns() / 1e9, self._start_s)
        values["DCGM_FI_DEV_XID_ERRORS"] = float(self._last_xid[index])
        if self._last_xid[index] == _XID_LOST:
            return dict.fromkeys(values, LOST)
        return values

    def follow_faults(self) -> None:
        """Takes in the faults that were injected since the last call; each is logged once, also over a crash in between."""
        try:
            with self._faults_path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._faults_read += 1
            try:
                fault = json.loads(line)
                gpu, xid = int(fault["gpu"]), int(fault["xid"])
                device = self._devices[gpu] if gpu >= 0 else None
            except (ValueError, KeyError, TypeError, IndexError):
                device = None
            if device is None:
                log.warning("%s: line %d names no fault of a simulated GPU", self._faults_path, self._faults_read)
                continue
            if self._last_xid[gpu] != _XID_LOST:  # a lost GPU cannot come back by another fault
                self._last_xid[gpu] = xid
            if self._faults_read > self._logged:
                self._write_log(device, xid)

    def run(self) -> None:
        """Follows the faults until `close`; for a thread."""
        while not self._stopping.wait(_POLL_S):
            self.follow_faults()

    def close(self) -> None:
        self._stopping.set()

    def _write_log(self, device: SimulatedDevice, xid: int) -> None:
        words = _WORDS.get(xid, "simulated")
        pci = device.pci_bus_id.removesuffix(".0")
        line = (
            f"[{self._clock.monotonic_s():.6f}] NVRM: Xid (PCI:{pci}): {xid}, pid='<unknown>', name=<unknown>, {words} "
            f"[simulated fault {self._faults_read}]\n"
        )
        fd = os.open(self.kernel_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def _count_logged(self) -> int:
        """Number of the newest fault in the kernel log: what a crash between the two files leaves open is known from there."""
        try:
            lines = self.kernel_log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return 0
        return max((int(match.group(1)) for line in lines if (match := _MARKER.search(line))), default=0)


def _device(node: str, index: int) -> SimulatedDevice:
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{node}/{index}.simulated")
    # One bus a GPU, from 0x10 on, as on a real board.
    return SimulatedDevice(index, f"GPU-{identity}", MODEL, MEMORY_BYTES, f"0000:{0x10 + index:02x}:00.0", f"nvidia{index}")


def _phase(node: str, index: int) -> float:
    """A number in 0 to 1 that sets this GPU apart from the others."""
    return int.from_bytes(hashlib.sha256(f"{node}/{index}".encode()).digest()[:4], "big") / 2**32


def _values(phase: float, now_s: float, start_s: float) -> dict[str, float | str]:
    """A GPU that trains: busy with a slow swell, power follows the load, temperature follows the power."""
    period_s = 60.0 + 30.0 * phase
    swell = math.sin(2 * math.pi * (now_s / period_s + phase))
    busy = 0.93 + 0.05 * swell
    power_w = 90.0 + 560.0 * busy
    # The integral of the power, so that energy never runs backwards.
    mean_w, swing_w = 90.0 + 560.0 * 0.93, 560.0 * 0.05
    wave_s = period_s / (2 * math.pi)
    start_wave = math.cos(2 * math.pi * (start_s / period_s + phase))
    energy_j = mean_w * (now_s - start_s) + swing_w * wave_s * (
        start_wave - math.cos(2 * math.pi * (now_s / period_s + phase))
    )
    temperature_c = round(30.0 + power_w * 0.05 + 4.0 * phase)
    memory_mib = MEMORY_BYTES / 1024**2
    used_mib = round(memory_mib * (0.7 + 0.1 * phase))
    reserved_mib = 512.0
    return {
        "DCGM_FI_DEV_SM_CLOCK": 1980.0 if busy < 0.97 else 1935.0,
        "DCGM_FI_DEV_MEM_CLOCK": 2619.0,
        "DCGM_FI_DEV_GPU_TEMP": float(temperature_c),
        "DCGM_FI_DEV_MEMORY_TEMP": float(temperature_c + 8),
        "DCGM_FI_DEV_POWER_USAGE": round(power_w, 1),
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": round(energy_j * 1000),
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 0.0,
        "DCGM_FI_DEV_GPU_UTIL": float(round(100 * busy)),
        "DCGM_FI_DEV_MEM_COPY_UTIL": float(round(55 * busy)),
        "DCGM_FI_DEV_ENC_UTIL": 0.0,
        "DCGM_FI_DEV_DEC_UTIL": 0.0,
        "DCGM_FI_DEV_FB_FREE": memory_mib - used_mib - reserved_mib,
        "DCGM_FI_DEV_FB_USED": float(used_mib),
        "DCGM_FI_DEV_FB_RESERVED": reserved_mib,
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": float(round(energy_j * 100)),
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 0.0,
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 0.0,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0.0,
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": 0.0,
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 0.0,
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE": round(busy, 3),
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": round(0.55 * busy, 3),
        "DCGM_FI_PROF_DRAM_ACTIVE": round(0.45 * busy, 3),
    }
