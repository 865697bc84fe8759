"""`amdsmi`, loaded where there is an AMD GPU, and the words for its status codes.

The module is the Python half of libamd_smi.so and knows its structures by heart, so both must be of one release: the one that ROCm
installs under /opt/rocm/share/amd_smi, or the one of PyPI with the number of the node's ROCm.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

#: What the kernel driver leaves behind when it is loaded, and the device through which compute goes.
_TRACES = ("sys/module/amdgpu", "dev/kfd")
#: `AMDSMI_STATUS_NOT_SUPPORTED`, `…_NOT_YET_IMPLEMENTED`: this GPU does not have it, and will not have it later.
_UNSUPPORTED = frozenset({2, 3})


class AmdUnavailable(Exception):
    """Why AMD's GPUs cannot be watched, with the remedy."""


class Failed(Exception):
    """A call failed. unsupported: this GPU does not have what it asks for."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.unsupported = code in _UNSUPPORTED


class AmdSmi:
    """The library, initialised. Every call may block for ever. Raises AmdUnavailable when it cannot be had."""

    def __init__(self) -> None:
        self._py = _load()
        self._wrapper: Any = self._py.amdsmi_interface.amdsmi_wrapper
        self._errors = (self._py.AmdSmiException,)
        try:
            self._py.amdsmi_init()
        except self._errors as error:
            raise AmdUnavailable(f"libamd_smi.so cannot be initialised: {_words(error)}; is amdgpu loaded?") from error

    def handles(self) -> list[Any]:
        """One for each GPU. Raises AmdUnavailable."""
        try:
            return list(self._py.amdsmi_get_processor_handles())
        except self._errors as error:
            raise AmdUnavailable(f"libamd_smi.so does not list the GPUs: {_words(error)}") from error

    def blocks(self) -> list[Any]:
        """The parts of a GPU that count errors, in this release."""
        return [block for block in self._py.AmdSmiGpuBlock if block.name not in {"INVALID", "RESERVED"}]

    def call(self, name: str, handle: Any, *arguments: Any) -> Any:
        """What `amdsmi_get_{name}` answers about this GPU. Raises Failed."""
        function = getattr(self._py, f"amdsmi_get_{name}", None)
        if function is None:  # of another release
            raise Failed(min(_UNSUPPORTED), f"this release of amdsmi has no amdsmi_get_{name}")
        try:
            return function(handle, *arguments)
        except Exception as error:  # beside its own errors whatever comes of a structure of another release
            raise Failed(getattr(error, "err_code", None) or 0, _words(error)) from error

    def metrics_table(self) -> Any:
        """Room for what the firmware publishes about a GPU, to be filled by `read_metrics` again and again."""
        return self._wrapper.amdsmi_gpu_metrics_t()

    def read_metrics(self, handle: Any, table: Any) -> None:
        """Fills the table. Raises Failed.

        Below the module's own function, which makes a dictionary of 170 entries and lists in lists of it at each call.
        """
        code = self._wrapper.amdsmi_get_gpu_metrics_info(handle, ctypes.byref(table))
        if code:
            raise Failed(code, _words(self._py.AmdSmiLibraryException(code)))


def traces_of_driver(root: Path = Path("/")) -> bool:
    """Whether the node has AMD GPUs, as far as files tell; nothing is loaded or called."""
    return all((root / trace).exists() for trace in _TRACES)


def _load() -> ModuleType:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # it prints what it misses
            return importlib.import_module("amdsmi")
    except ModuleNotFoundError as error:
        if error.name != "amdsmi":
            raise
        raise AmdUnavailable(
            "there are AMD GPUs and no amdsmi: install the one of the node's ROCm (pip install /opt/rocm/share/amd_smi), "
            "or pip install 'switchgear[amd]'"
        ) from None
    except (KeyError, OSError, AttributeError) as error:
        # It looks its functions up in a table which stays empty without the library, or in a library of another release.
        raise AmdUnavailable(
            f"amdsmi does not find libamd_smi.so, or one of another release ({error}); install amd-smi-lib of the node's ROCm, "
            "and the amdsmi that belongs to it"
        ) from error


def _words(error: BaseException) -> str:
    """As one line: the module's own text has line breaks in it."""
    return str(getattr(error, "err_info", "") or " ".join(str(error).split()))
