"""Whose GPUs are on this node. A new accelerator is a function here; docs/new-accelerator.md has a whole one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from switchgear.agent.events import Events
from switchgear.agent.kernel_log_follower import SOURCE as KERNEL_LOG
from switchgear.agent.sources.gpu import GpuDevice, GpuDriver
from switchgear.core.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a vendor's driver is given. events: where it tells what it notices. first_index: of its first GPU, behind all earlier vendors'.

    kernel_log: whether the agent reads the kernel log, where a driver's faults have more words. late: to be called, from any thread,
    when GPUs are there that were not when the driver was opened; the agent then opens all anew.
    """

    events: Events
    clock: Clock
    first_index: int
    kernel_log: bool
    late: Callable[[], None]


#: A context with the driver, or None where the node has no such GPUs; it decides by what is on the node and must not hang.
OpenGpus = Callable[[Opening], AbstractContextManager[GpuDriver | None]]


# Each imports its own when it is asked: most nodes have one vendor's GPUs, and the agent is to stay small.
def _nvidia(opening: Opening) -> AbstractContextManager[GpuDriver | None]:
    from switchgear.agent.nvml.open import nvidia_gpus

    return nvidia_gpus(
        opening.events, opening.clock, opening.late, log_source=KERNEL_LOG, kernel_log=opening.kernel_log
    )


def _amd(opening: Opening) -> AbstractContextManager[GpuDriver | None]:
    from switchgear.agent.amd.open import amd_gpus

    return amd_gpus(opening.events, opening.first_index)


#: In the order of their indices on a node that has several.
VENDORS: Sequence[OpenGpus] = (_nvidia, _amd)


@contextmanager
def open_gpus(
    events: Events,
    clock: Clock,
    late: Callable[[], None] = lambda: None,
    *,
    kernel_log: bool,
    vendors: Sequence[OpenGpus] = VENDORS,
) -> Iterator[list[tuple[GpuDriver, GpuDevice]]]:
    """Every GPU of the node with the driver that reads it; no two have the same index."""
    with ExitStack() as stack:
        found = list[tuple[GpuDriver, GpuDevice]]()
        for vendor in vendors:
            first_index = 1 + max((device.index for _, device in found), default=-1)
            opening = Opening(events=events, clock=clock, first_index=first_index, kernel_log=kernel_log, late=late)
            driver = stack.enter_context(vendor(opening))
            if driver is not None:
                found += [(driver, device) for device in driver.devices()]
        yield found
