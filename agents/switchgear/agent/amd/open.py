"""The AMD GPUs of this node as the agent composes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from switchgear.agent.amd.driver import AmdDriver
from switchgear.agent.amd.library import AmdSmi, AmdUnavailable, traces_of_driver
from switchgear.agent.events import Events, Finding

log = logging.getLogger(__name__)

SOURCE = "driver"
#: How long the agent waits for the driver before it runs without it.
PATIENCE_S = 15.0


@contextmanager
def amd_gpus(events: Events, first_index: int, root: Path = Path("/")) -> Iterator[AmdDriver | None]:
    """The driver of the node's AMD GPUs; None where there are none, or where the reason is in the log and an event why not.

    first_index: of the first of them, behind those of other vendors. root: of the file system.
    """
    if not traces_of_driver(root):
        yield None
        return

    def tell(finding: Finding) -> None:
        events.tell(SOURCE, finding)

    opened: list[AmdDriver] = []
    problem = [f"amdsmi is not initialised after {PATIENCE_S:g} s; look into the kernel log, then restart the agent"]

    def open_library() -> None:
        try:
            opened.append(AmdDriver(AmdSmi(), first_index, tell, sysfs=root / "sys"))
        except AmdUnavailable as error:
            problem[0] = str(error)
        except Exception as error:  # of a library of another release
            log.exception("amdsmi")
            problem[0] = (
                f"what amdsmi answers is not understood: {type(error).__name__}: {error}; is it of the node's ROCm?"
            )

    # In a thread: the library may hang on a sick GPU, and the agent must not.
    thread = threading.Thread(target=open_library, name="amdsmi", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if not opened:
        log.error("no AMD GPU is watched: %s", problem[0])
        tell(Finding("GPU_DRIVER_UNAVAILABLE", problem[0]))
        yield None
        return
    # Not shut down at the end: a call that hangs may still be in the library, and the process ends anyway.
    yield opened[0]
