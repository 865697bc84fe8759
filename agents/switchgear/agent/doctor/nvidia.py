"""NVIDIA's driver and its GPUs, asked by the very code that the agent asks them with."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from switchgear.agent.doctor import judgement
from switchgear.agent.doctor.check import Check, note, ok, problem
from switchgear.agent.doctor.deadline import CallTime, TimedCalls, run
from switchgear.agent.doctor.gpu import Gpu
from switchgear.agent.nvml import calls, fields, gpm, library
from switchgear.agent.nvml.device import identify, info, processes, said
from switchgear.agent.nvml.library import Nvml, NvmlUnavailable, code_of
from switchgear.agent.nvml.power import addresses, sleepers
from switchgear.agent.nvml.reader import GpuReader
from switchgear.agent.sources.gpu import normal_pci

#: GPM gives rates between two readings; over less they say little.
_BETWEEN_SAMPLES_S = 0.1
#: A call that takes longer is worth a word: the agent asks some twenty a second of each GPU.
_SLOW_MS = 100.0
_REBOOT = "look into the kernel log (`dmesg | grep NVRM`); when it stays so, reset the GPU or reboot the node"
_PERMISSION = "run the agent as root, or give its user access to /dev/nvidia*"
_ASKED = frozenset(
    {metric for call in (*calls.FAST, *calls.SLOW, *calls.INSTEAD_OF_FIELDS) for metric in call.metrics}
    | {one.metric for one in (*fields.FAST, *fields.SLOW, *fields.NVLINK5, *fields.NVLINK5_BER)}
    | {metric.metric for metric in gpm.METRICS}
)


@dataclass(frozen=True, slots=True)
class PciGpu:
    """A GPU as the PCI bus shows it, whether the driver has it or not."""

    address: str
    driver: str


def pci_gpus(root: Path) -> list[PciGpu]:
    """NVIDIA's display controllers in sysfs, in the order of their addresses."""
    found = list[PciGpu]()
    for address in addresses(root / "sys"):
        driver = root / "sys/bus/pci/devices" / address / "driver"
        found.append(PciGpu(normal_pci(address), driver.resolve().name if driver.exists() else ""))
    return found


def examine(root: Path, *, expected: bool, deadline_s: float) -> tuple[list[Check], list[Gpu]]:
    """The driver, and each GPU. expected: a node without a GPU is a problem. deadline_s: for each call of NVML."""
    on_bus = pci_gpus(root)
    wanted = expected or bool(on_bus) or library.traces_of_driver(root)
    checks = [*_bus(on_bus), *_device_files(root)]
    try:
        module = library.load().py
        timed = TimedCalls(module)
        nvml, seen, count = Nvml(timed), list[Check](), 0

        def begin() -> None:
            nonlocal count
            nvml.init()
            seen.extend(_driver(nvml))
            count = int(nvml.py.nvmlDeviceGetCount())

        hangs = run(begin, timed, deadline_s)
    except NvmlUnavailable as error:
        return [*checks, _unavailable(error) if wanted else note("driver", "no sign of an NVIDIA GPU on this node")], []
    except Exception as error:  # whatever it answers; all the rest of the node is to be seen nevertheless
        return [*checks, problem("driver", f"does not say what GPUs there are: {error}", _REBOOT, unfit=True)], []
    if hangs:
        return [*checks, problem("driver", _hanging(hangs, deadline_s), _REBOOT, unfit=True)], []
    asleep = sleepers(count, root / "sys")
    gpus = [_asleep(index) if index in asleep else _examine(module, index, deadline_s) for index in range(count)]
    return [*checks, *seen, *_count(count, on_bus, expected=expected), *_slow(timed.times)], gpus


def _asleep(index: int) -> Gpu:
    text = "asleep (PCI runtime suspend); the agent does not wake it, and neither does this"
    return Gpu(index, checks=[note("power", text, "persistence mode keeps a GPU awake")])


def _examine(module: ModuleType, index: int, deadline_s: float) -> Gpu:
    gpu, timed = Gpu(index), TimedCalls(module)
    nvml = Nvml(timed)
    try:
        gpu.hangs = run(lambda: _ask(nvml, gpu), timed, deadline_s)
    except nvml.Error as error:
        lost = code_of(error) in library.LOST
        remedy = judgement.RESET if lost else _REBOOT
        gpu.checks.append(problem("driver calls", f"does not answer: {error}", remedy, unfit=True))
    except Exception as error:  # of ours; whoever runs this on new hardware is to see all the rest
        text = f"what it answers is not understood: {type(error).__name__}: {error}"
        gpu.checks.append(
            problem(
                "driver calls",
                text,
                "report it with `switchgear doctor --gpu --json`; the agent does not watch this GPU",
            )
        )
    gpu.times = timed.times
    if gpu.hangs:
        text = f"{_hanging(gpu.hangs, deadline_s)}; nothing more was asked of this GPU"
        gpu.checks.append(problem("driver calls", text, _REBOOT, unfit=True))
    gpu.checks.extend(_slow(gpu.times))
    return gpu


def _hanging(function: str, deadline_s: float) -> str:
    return f"{function} does not come back within {deadline_s:g} s"


def _ask(nvml: Nvml, gpu: Gpu) -> None:
    """Fills in what it learns as it goes, so that it stands when a call hangs."""
    gpu.device = identify(nvml, gpu.index)
    handle = nvml.py.nvmlDeviceGetHandleByIndex(gpu.index)
    gpu.details = dict(info(nvml, handle))
    reader = GpuReader(nvml, handle)
    values = dict[str, float | str]()
    for pause_s in (_BETWEEN_SAMPLES_S, 0.0):
        values |= {metric: value for metric, _, value in (*reader.fast(), *reader.slow())}
        time.sleep(pause_s)
    reader.close()
    gpu.take(values, _ASKED)
    gpu.checks.extend((*judgement.judge(values), judgement.profiling(values)))
    if gpu.refused:
        reasons = "; ".join(sorted(set(gpu.refused.values())))
        gpu.checks.append(problem("metrics", f"{len(gpu.refused)} refused: {reasons}", _PERMISSION))
    try:
        supported = int(nvml.py.nvmlDeviceGetSupportedEventTypes(handle))
    except nvml.Error:
        supported = 0
    gpu.checks.append(judgement.events(supported))
    list(processes(nvml, handle))


def _driver(nvml: Nvml) -> list[Check]:
    driver, own, cuda = (
        said(nvml, f"nvmlSystemGet{what}") for what in ("DriverVersion", "NVMLVersion", "CudaDriverVersion_v2")
    )
    versions = [f"driver {driver or '?'}", f"NVML {own or '?'}"]
    if cuda:
        versions.append(f"CUDA {int(cuda) // 1000}.{int(cuda) % 1000 // 10}")
    return [ok("driver", ", ".join(versions))]


def _unavailable(error: NvmlUnavailable) -> Check:
    text, colon, remedy = str(error).partition(": ")
    unfit = error.code != library.NO_PERMISSION  # ours; jobs may have it
    return problem("driver", text if colon else str(error), remedy or _REBOOT, unfit=unfit)


def _bus(on_bus: Sequence[PciGpu]) -> list[Check]:
    return [
        problem(
            "PCI bus",
            f"the GPU at {found.address} has the driver {found.driver or 'none'}, and not nvidia",
            "`modprobe nvidia`; where nouveau has it, put nouveau on the blacklist; where vfio-pci has it, a guest uses it",
        )
        for found in on_bus
        if found.driver != "nvidia"
    ]


def _count(count: int, on_bus: Sequence[PciGpu], *, expected: bool) -> list[Check]:
    if expected and count == 0:
        remedy = "look for them with `lspci -d 10de:`, then into the kernel log"
        return [problem("GPUs", "the driver has none", remedy, unfit=True)]
    missing = len(on_bus) - count
    if missing > 0:
        text = f"the PCI bus has {len(on_bus)}, the driver {count}"
        remedy = "look for `RmInitAdapter failed` and XID 79 in the kernel log, then reboot; a container may have been given only some"
        return [problem("GPUs", text, remedy, unfit=True)]
    return [ok("GPUs", f"the driver has {count}")]


def _device_files(root: Path) -> list[Check]:
    closed = [path for path in sorted((root / "dev").glob("nvidia[0-9c]*")) if not path.is_dir() and not _usable(path)]
    if not closed:
        return []
    names = ", ".join(f"/{path.relative_to(root)}" for path in closed)
    return [problem("device files", f"{names}: may not be opened by this user", _PERMISSION)]


def _slow(times: Mapping[str, CallTime]) -> list[Check]:
    late = {name: spent.max_ms for name, spent in times.items() if spent.max_ms >= _SLOW_MS}
    if not late:
        return []
    text = ", ".join(f"{name} {took_ms:.0f} ms" for name, took_ms in sorted(late.items()))
    return [
        note(
            "latency",
            f"slow calls: {text}",
            "a first call wakes a GPU without persistence mode; if it stays so, see the kernel log",
        )
    ]


def _usable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)
