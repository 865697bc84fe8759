"""The NVIDIA GPUs of this node as the agent composes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from switchgear.agent.events import Events, Finding
from switchgear.agent.fault_join import FaultJoin
from switchgear.agent.nvml import library
from switchgear.agent.nvml.driver import NvmlDriver
from switchgear.agent.nvml.library import NvmlUnavailable
from switchgear.agent.nvml.lifecycle import DRIVER_HANGS, Lifecycle
from switchgear.agent.nvml.power import has_gpu
from switchgear.agent.xids import XidHistory
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

#: How long the agent waits for the driver before it runs without it; what comes later is `late`.
PATIENCE_S = 5.0
#: After this the driver hangs: waking many GPUs without persistence mode takes ten seconds and more.
HANGS_S = 30.0


@contextmanager
def nvidia_gpus(
    events: Events,
    clock: Clock,
    late: Callable[[], None],
    *,
    log_source: str,
    kernel_log: bool,
    sysfs: Path = Path("/sys"),
) -> Iterator[NvmlDriver | None]:
    """The driver of the node's NVIDIA GPUs; None where the node has no sign of any.

    late: called when the first GPUs are there only after this gave up on them. log_source: how `events` knows the kernel log.
    kernel_log: whether it can be read.
    """
    if not (library.traces_of_driver() or has_gpu(sysfs) or _has_library()):
        yield None
        return
    faults = FaultJoin(events, clock, log_source=log_source, kernel_log=kernel_log)
    xids = XidHistory(clock)
    events.observe(xids.observe)
    driver = NvmlDriver(faults.tell, xids, clock, sysfs=sysfs)
    lifecycle = Lifecycle(driver, faults.tell, late, clock)
    thread = threading.Thread(target=lifecycle.run, name="nvml", daemon=True)
    thread.start()
    if not lifecycle.wait(PATIENCE_S):
        log.warning("NVML is not initialised after %g s; GPUs are watched as soon as it is", PATIENCE_S)

    def note_hang() -> None:
        if not lifecycle.wait(0.0):
            text = f"NVML is not initialised after {HANGS_S:g} s and no GPU is watched until it is; look into the kernel log"
            log.error("%s", text)
            faults.tell(Finding(DRIVER_HANGS, text))

    hang = threading.Timer(HANGS_S - PATIENCE_S, note_hang)
    hang.daemon = True
    if not lifecycle.wait(0.0):
        hang.start()
    try:
        yield driver
    finally:
        hang.cancel()
        lifecycle.close()
        thread.join(timeout=2.0)
        faults.close()


def _has_library() -> bool:
    try:
        library.find()
    except NvmlUnavailable:
        return False
    return True
