"""The driver's library: found, loaded, initialised, and what its return codes mean to us."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

#: What the library is called wherever the driver is installed.
SONAME = "libnvidia-ml.so.1"

# Return codes of nvml.h, enum nvmlReturn_t.
SUCCESS = 0
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
LIB_RM_VERSION_MISMATCH = 18
VGPU_ECC_NOT_SUPPORTED = 22
ARGUMENT_VERSION_MISMATCH = 25
DEPRECATED = 26
GPU_NOT_FOUND = 28

#: Not asked again before the library is initialised anew: driver or GPU do not have it.
UNSUPPORTED = frozenset(
    {
        INVALID_ARGUMENT,  # an id that the driver is too old to know
        NOT_SUPPORTED,
        FUNCTION_NOT_FOUND,
        VGPU_ECC_NOT_SUPPORTED,
        ARGUMENT_VERSION_MISMATCH,
        DEPRECATED,
    }
)
LOST = frozenset({GPU_IS_LOST, GPU_NOT_FOUND})
#: Every handle is void: the driver went away under us.
BROKEN = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})

_REMEDIES = {
    LIBRARY_NOT_FOUND: f"{SONAME} is not found: install the NVIDIA driver; in a container, start it with the NVIDIA runtime "
    "and NVIDIA_DRIVER_CAPABILITIES=utility",
    DRIVER_NOT_LOADED: "the NVIDIA kernel module does not answer: `modprobe nvidia`, and look into the kernel log",
    NO_PERMISSION: "/dev/nvidiactl and /dev/nvidia* may not be opened: run the agent as root or give its user access to them",
    LIB_RM_VERSION_MISMATCH: "the NVIDIA kernel module is of another version than the library: load it again, or reboot",
}


class NvmlUnavailable(Exception):
    """NVML cannot be used; the text says why and what helps. code: its return code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(_REMEDIES.get(code, f"NVML cannot be initialised: {text}"))
        self.code = code


class Nvml:
    """The loaded library. `py` is the `pynvml` module, whose errors have a `value`: the return code."""

    def __init__(self, py: ModuleType) -> None:
        self.py: Any = py
        self.Error: type[Exception] = self.py.NVMLError

    def function(self, name: str) -> Callable[..., int]:
        """A function of the library itself, which returns its code; raises NVMLError when the library does not have it.

        pynvml's wrappers allocate what they fill at each call; a batch that is read every second keeps its memory instead.
        """
        pointer: Callable[..., int] = self.py._nvmlGetFunctionPointer(name)  # pynvml has no public way
        return pointer

    def words(self, code: int) -> str:
        return str(self.py.NVMLError(code))

    def init(self) -> None:
        """Raises NvmlUnavailable. May take seconds when the driver has to wake the GPUs, and may hang with a sick one."""
        try:
            self.py.nvmlInit()
        except self.Error as error:
            raise NvmlUnavailable(code_of(error), str(error)) from error

    def shutdown(self) -> None:
        """Handles are void from now on, and no call may be under way."""
        try:
            self.py.nvmlShutdown()
        except self.Error:  # it is down already
            return


def code_of(error: Exception) -> int:
    """Return code of an NVMLError."""
    return int(getattr(error, "value", -1))


def traces_of_driver(root: Path = Path("/")) -> bool:
    """Whether this node has, or should have, an NVIDIA driver."""
    return any((root / "dev").glob("nvidia[0-9c]*")) or (root / "proc/driver/nvidia").exists()


def find() -> None:
    """Raises NvmlUnavailable when the library is not where the loader looks."""
    try:
        ctypes.CDLL(SONAME)
    except OSError as error:
        raise NvmlUnavailable(LIBRARY_NOT_FOUND, str(error)) from error


def load() -> Nvml:
    """Raises NvmlUnavailable when there is no library. `pynvml` takes 5 MB, so a node without the library never imports it."""
    find()
    import pynvml

    return Nvml(pynvml)
