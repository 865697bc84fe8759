"""What a zygote imports before it forks, and whether it may fork afterwards."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_CAP_SYS_NICE = 23
#: What scripts import for training, and what torch imports by itself in a first step, load or save; a name that is not there is
#: left out.
_MODULES = (
    "multiprocessing.popen_fork",
    "multiprocessing.queues",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
)
#: A look at them must stay a matter of milliseconds.
_FILES_MAX = 4096


def torch() -> Any:
    """Imports torch with one intra-op thread; None when the interpreter has none (plain scripts still run)."""
    gc.disable()  # it would look again and again at what imports leave for ever: a fifth of their time
    try:
        module = importlib.import_module("torch")
        module.set_num_threads(1)
        for name in _MODULES:
            # For example Dynamo on a Python it does not know yet; the script will say so if it minds.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    except ImportError:
        return None
    finally:
        gc.enable()
    return module


def of_user(modules: list[str]) -> list[str]:
    """Imports them as a script in this folder would; answers why some are missing. What they change of this process is undone."""
    folder, path = str(Path.cwd()), list(sys.path)
    failed = []
    sys.path.insert(0, folder)
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # whatever it is, also SystemExit: its script will meet it again
            failed.append(f"{name}: {type(error).__name__}: {error}"[:1000])
            traceback.print_exc()
    sys.path[:] = path
    os.chdir(folder)
    return failed


def files_of(modules: Iterable[str]) -> dict[str, int]:
    """The files that these modules were read from, with their time of change."""
    files: dict[str, int] = {}
    for name in list(modules)[:_FILES_MAX]:
        path = getattr(sys.modules.get(name), "__file__", None)
        try:
            if isinstance(path, str):
                files[path] = Path(path).stat().st_mtime_ns
        except OSError:
            continue
    return files


def why_not_fork(*, has_children: bool) -> str:
    """What makes this process unfit to fork ranks, empty when nothing does."""
    cuda = sys.modules.get("torch.cuda")
    if cuda is not None and cuda.is_initialized():
        return "the imports have initialised CUDA"
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if target.startswith(("/dev/nvidia", "/dev/kfd")):
            return f"the imports opened {target}"
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run after the imports"
    if has_children:
        return "the imports left a process of their own running"
    return ""


def _can_be_nice() -> bool:
    """Whether this process may take back that it was nice, which takes a right that few have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    return soft >= 20 or bool(capabilities >> _CAP_SYS_NICE & 1)


@contextlib.contextmanager
def nice(increment: int) -> Iterator[None]:
    """Leaves the processor to others in the block, as far as what follows can have it back."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if not increment or not _can_be_nice():
        yield
        return
    os.nice(increment)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # a right that counts in a container's own namespace only
            os.setpriority(os.PRIO_PROCESS, 0, before)
