"""The three faults of the demo: each is really done to a process, a simulated GPU or a file, and timed on this machine's clock."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from switchgear.sim.inject import inject_xid
from switchgear.v1 import recovery_service_pb2 as recovery


@dataclass(frozen=True, slots=True)
class Injected:
    """What was done, and when (Unix ns)."""

    name: str
    what: str
    time_ns: int


def kill_rank(progress: recovery.JobProgress, number: int) -> Injected:
    """SIGKILL, as the out-of-memory killer would send it."""
    rank = next(rank for rank in progress.ranks if rank.rank == number)
    now = time.time_ns()
    os.kill(rank.pid, signal.SIGKILL)
    return Injected("rank killed", f"SIGKILL of rank {number} (pid {rank.pid}) on {rank.node}", now)


def lose_gpu(agent_dir: Path, node: str) -> Injected:
    """The node's simulated GPU 0 falls off the bus: a kernel-log line with XID 79, and no more values from it."""
    now = time.time_ns()
    inject_xid(agent_dir, 0, 79)
    return Injected("GPU lost", f"XID 79 of simulated GPU 0 on {node}", now)


def damage(path: Path) -> str:
    """Flips one bit in the middle of the file, where a checkpoint keeps its tensors; its size and time stay as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"one bit flipped in {path.name}"
