"""GPUs that do not exist, for machines without any: they are read, fail and are told apart like real ones. So are the network interfaces.

Everything here says that it is simulated: the model's name, the device's flag, the marker at the end of each kernel-log line.
"""

from __future__ import annotations

import heapq
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
from switchgear.core.errors import Invalid
from switchgear.sim import driver, profiles, workloads
from switchgear.sim.faults import FAULTS_MAX, Fault, FaultKind, History, Scheduled
from switchgear.sim.inject import DEVICES_FILE, FAULTS_FILE, KERNEL_LOG_FILE, inject_script, read_fault
from switchgear.sim.kernel_lines import gpu_pci, kernel_lines
from switchgear.sim.nics import SimulatedNics
from switchgear.sim.profiles import Profile
from switchgear.sim.signals import GpuSignals, Value
from switchgear.sim.workloads import seed_of, workload

log = logging.getLogger(__name__)

NVSWITCHES = 4
#: Simulated network interfaces of a node with simulated GPUs.
NICS = 2
NICS_FOLDER = "sim-node"
_POLL_S = 0.05
#: Between complaints about the disk.
_SAY_EVERY_S = 60.0
_MARKER = re.compile(r"\[simulated fault (\d+\.\d+)\]$")


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

    def labels(self, hostname: str) -> tuple[tuple[str, str], ...]:
        """As the agent labels the series of a GPU."""
        return (
            ("gpu", str(self.index)),
            ("UUID", self.uuid),
            ("pci_bus_id", self.pci_bus_id),
            ("device", self.device_file),
            ("modelName", self.model),
            ("hostname", hostname),
        )


class SimulatedGpus:
    """A GPU driver without GPUs; the values are a function of seed, node, index, profile, workload, faults and time alone.

    state_dir: where faults are injected (`inject`) and where the kernel log is written. Counters and faults last over restarts:
    a lost GPU stays lost, until it is mended or the folder is gone.
    """

    def __init__(
        self,
        node: str,
        count: int,
        state_dir: Path,
        clock: Clock,
        *,
        profile: str = profiles.DEFAULT,
        work: str = workloads.DEFAULT,
        seed: int = 0,
    ) -> None:
        self._clock = clock
        self._profile = profiles.profile(profile)
        self._devices = [simulated_device(node, index, self._profile) for index in range(count)]
        self._faults_path = state_dir / FAULTS_FILE
        self.kernel_log = state_dir / KERNEL_LOG_FILE
        present = {
            "gpus": count,
            "nics": NICS,
            "nvswitches": NVSWITCHES if self._profile.nvlink else 0,
            "links": self._profile.links,
            "vendor": self._profile.vendor,
        }
        self._present = present
        self._start_unix_ns = _remember_start(state_dir / DEVICES_FILE, present, clock.unix_ns())
        # From here on by the clock that never jumps, or counters would.
        self._ahead_s = max(0.0, (clock.unix_ns() - self._start_unix_ns) / 1e9) - clock.monotonic_s()
        does = workload(work, seed)
        self._signals = [
            GpuSignals(self._profile, does, seed_of(seed, node, index), History()) for index in range(count)
        ]
        self._link_flaps: list[Scheduled] = []
        self.nics = SimulatedNics(NICS, state_dir / NICS_FOLDER, does.cycle, self._link_flaps)
        self._offset = 0
        self._lines_read = 0
        self._faults = 0
        self._logged = self._read_logged()
        #: Time at which a line is due, its number, and the line.
        self._due: list[tuple[float, str, str]] = []
        self._say_again_s = -math.inf
        self._stopping = threading.Event()

    @property
    def now_s(self) -> float:
        """Since the simulation's start, over all restarts."""
        return self._clock.monotonic_s() + self._ahead_s

    def plan(self, script: str) -> None:
        """Takes in a fault script (`faults.parse_script`), once in the life of the state directory. Raises Invalid when it is wrong."""
        inject_script(self._faults_path.parent, script, self._present, self._clock.unix_ns())

    def devices(self) -> Sequence[SimulatedDevice]:
        return self._devices

    def read(self, index: int, *, slow: bool) -> Iterator[Value]:
        """Blocks as long as a fault lets the GPU hang."""
        signals = self._signals[index]
        while signals.history.hangs(self.now_s) and not self._stopping.wait(_POLL_S):
            pass
        return driver.read(signals, self.now_s, slow=slow)

    def processes(self, index: int) -> tuple[tuple[int, int | None, int | None], ...]:  # noqa: ARG002 - as real drivers
        return ()

    def follow_faults(self) -> None:
        """Takes in the faults that were injected since the last call and lets happen what is due.

        Each is logged once, also over a crash in between.
        """
        self._read_faults()
        self.nics.write(self.now_s)
        while self._due and self._due[0][0] <= self.now_s:
            _, number, line = self._due[0]
            if number not in self._logged:
                self._write_log(number, line)
            heapq.heappop(self._due)

    def run(self) -> None:
        """Follows the faults until `close`; for a thread."""
        while not self._stopping.wait(_POLL_S):
            try:
                self.follow_faults()
            except OSError as error:  # the disk is full: what is due is written when there is room again
                # Not each time: most rounds have nothing to write, and then it works.
                if (now_s := self._clock.monotonic_s()) >= self._say_again_s:
                    log.error("simulated faults wait: %s", error)
                    self._say_again_s = now_s + _SAY_EVERY_S

    def close(self) -> None:
        """Ends `run`, and calls that hang."""
        self._stopping.set()

    def _read_faults(self) -> None:
        try:
            if self._faults_path.stat().st_size <= self._offset:
                return
            with self._faults_path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._lines_read += 1
            try:
                found = read_fault(line, self._present)
            except (ValueError, RecursionError, Invalid) as error:
                log.warning(
                    "%s: line %d is no fault of simulated hardware: %s", self._faults_path, self._lines_read, error
                )
                continue
            if found is not None:
                self._take(found)

    def _take(self, found: tuple[int, Fault]) -> None:
        if self._faults >= FAULTS_MAX:
            log.warning("%s: more than %d faults; the rest is left out", self._faults_path, FAULTS_MAX)
            return
        self._faults += 1
        at_unix_ns, fault = found
        at_s = (at_unix_ns - self._start_unix_ns) / 1e9
        if fault.kind is FaultKind.LINK_FLAP:
            self._link_flaps.append(Scheduled(at_s, fault))
        elif fault.kind is not FaultKind.SXID:
            self._signals[fault.target].history.add(Scheduled(at_s, fault))
        for turn, (after_s, line) in enumerate(kernel_lines(fault, self._profile)):
            heapq.heappush(self._due, (at_s + after_s, f"{self._lines_read}.{turn}", line))

    def _write_log(self, number: str, line: str) -> None:
        text = f"[{self._clock.monotonic_s():.6f}] {line} [simulated fault {number}]\n"
        fd = os.open(self.kernel_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _read_logged(self) -> frozenset[str]:
        """Numbers of the lines in the kernel log: what a crash between the two files leaves open is known from there."""
        try:
            lines = self.kernel_log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return frozenset()
        return frozenset(match.group(1) for line in lines if (match := _MARKER.search(line)))


def simulated_device(node: str, index: int, profile: Profile) -> SimulatedDevice:
    """The same identity whenever the same node simulates it."""
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{node}/{index}.simulated")
    return SimulatedDevice(
        index,
        f"GPU-{identity}",
        f"Simulated {profile.model}",
        profile.memory_mib * 1024**2,
        gpu_pci(index),
        f"renderD{128 + index}" if profile.is_amd else f"nvidia{index}",
    )


def _remember_start(path: Path, present: Mapping[str, object], now_unix_ns: int) -> int:
    """When this hardware was first there; counters go on from then."""
    try:
        start_unix_ns = int(json.loads(path.read_text())["start_unix_ns"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        start_unix_ns = now_unix_ns
    written = path.with_suffix(".new")
    written.write_text(json.dumps({**present, "start_unix_ns": start_unix_ns}))
    written.replace(path)  # whoever injects at this moment reads a whole file
    return start_unix_ns
