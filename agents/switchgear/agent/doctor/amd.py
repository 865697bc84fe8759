"""AMD's GPUs, asked by the very code that the agent asks them with."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from switchgear.agent.amd.driver import AmdDriver
from switchgear.agent.amd.library import AmdSmi, AmdUnavailable, traces_of_driver
from switchgear.agent.amd.readings import FAST
from switchgear.agent.doctor import judgement
from switchgear.agent.doctor.check import Check, note, ok, problem
from switchgear.agent.doctor.deadline import TimedCalls, run
from switchgear.agent.doctor.gpu import Gpu
from switchgear.agent.events import Finding

_LIBRARY = (
    "amdsmi and libamd_smi.so must be of the node's ROCm: `pip install /opt/rocm/share/amd_smi`; the agent's user needs the groups "
    "video and render"
)
_REBOOT = (
    "look into the kernel log (`dmesg | grep amdgpu`); when it stays so, `amd-smi reset --gpureset`, or reboot the node"
)
_ASKED = frozenset(entry.metric for entry in FAST)


def examine(root: Path, first_index: int, *, deadline_s: float) -> tuple[list[Check], list[Gpu]]:
    """Nothing where there is no AMD GPU.

    first_index: of the first of them, behind those of other vendors. deadline_s: for each sample.
    """
    if not traces_of_driver(root):
        return [], []
    timed, drivers = TimedCalls(ModuleType("amdsmi")), list[AmdDriver]()

    def begin() -> None:
        drivers.append(AmdDriver(AmdSmi(), first_index, _ignore, sysfs=root / "sys"))

    try:
        hangs = run(timed.timed("amdsmi_init", begin), timed, deadline_s)
    except AmdUnavailable as error:
        return [problem("AMD driver", str(error), _LIBRARY)], []
    except Exception as error:  # of a library of another release; all the rest of the node is to be seen nevertheless
        text = f"what amdsmi answers is not understood: {type(error).__name__}: {error}"
        return [problem("AMD driver", text, _LIBRARY)], []
    if hangs:
        text = f"{hangs} does not come back within {deadline_s:g} s"
        return [problem("AMD driver", text, _REBOOT, unfit=True)], []
    gpus = [_examine(drivers[0], Gpu(device.index, device), deadline_s) for device in drivers[0].devices()]
    version = next((gpu.device.driver_version for gpu in gpus if gpu.device is not None), "")
    return [ok("AMD driver", f"amdgpu {version}; {len(gpus)} GPUs")], gpus


def _examine(driver: AmdDriver, gpu: Gpu, deadline_s: float) -> Gpu:
    timed, values = TimedCalls(ModuleType("amdsmi")), dict[str, float | str]()

    def sample(*, slow: bool) -> None:
        values.update((metric, value) for metric, _, value in driver.read(gpu.index, slow=slow))

    def ask() -> None:
        timed.timed("fast sample", sample)(slow=False)
        timed.timed("slow sample", sample)(slow=True)

    gpu.hangs = run(ask, timed, deadline_s)
    gpu.times = timed.times
    if gpu.hangs:
        text = f"the {gpu.hangs} does not come back within {deadline_s:g} s; nothing more was asked of this GPU"
        gpu.checks.append(problem("driver calls", text, _REBOOT, unfit=True))
        return gpu
    gpu.take(values, _ASKED)
    if not values:
        gpu.checks.append(note("driver calls", "asleep, or does not answer: nothing was read", _REBOOT))
    gpu.checks.extend(judgement.pcie(values))
    return gpu


def _ignore(finding: Finding) -> None:
    """The doctor looks at what is, and not at what happens meanwhile."""
