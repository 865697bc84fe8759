"""What the driver of a simulated GPU answers, whichever vendor's it is."""

from __future__ import annotations

from collections.abc import Iterator

from switchgear.sim import amd, nvidia
from switchgear.sim.faults import LOST
from switchgear.sim.signals import GpuSignals, Value


def read(gpu: GpuSignals, time_s: float, *, slow: bool) -> Iterator[Value]:
    """What changes from second to second, or (slow) what changes seldom; a GPU that is lost says so in place of every value."""
    vendor = amd if gpu.profile.is_amd else nvidia
    lost = gpu.history.lost(time_s)
    for metric, labels, value in vendor.slow(gpu, time_s) if slow else vendor.fast(gpu, time_s):
        yield metric, labels, LOST if lost else value
