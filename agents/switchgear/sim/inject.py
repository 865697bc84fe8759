"""Faults for simulated GPUs, asked for by appending to a file that the agent's simulation follows."""

from __future__ import annotations

import json
import os
from pathlib import Path

from switchgear.core.errors import FailedPrecondition, Invalid, Reason

FAULTS_FILE = "sim-faults.jsonl"
KERNEL_LOG_FILE = "sim-kernel.log"
#: Written by the simulation: how many GPUs there are to break.
DEVICES_FILE = "sim-gpus.json"


def inject_xid(state_dir: Path, gpu: int, xid: int) -> None:
    """Lets the simulated GPU with index `gpu` of the agent with this state directory report `xid`; 79 loses it for good.

    Raises FailedPrecondition when no agent simulates GPUs there, Invalid when there is no such GPU or code.
    """
    try:
        gpus = int(json.loads((state_dir / DEVICES_FILE).read_text())["gpus"])
    except (FileNotFoundError, NotADirectoryError):
        raise FailedPrecondition(
            f"no agent simulates GPUs in {state_dir}; start one there with --sim-gpus",
            Reason.NOT_FOUND,
            state_dir=str(state_dir),
        ) from None
    if not 0 <= gpu < gpus:
        raise Invalid(
            f"GPU {gpu} does not exist; the simulated ones are 0 to {gpus - 1}", Reason.BAD_FIELD, field="gpu"
        )
    if not 1 <= xid <= 9999:
        raise Invalid(f"XID {xid} is not a code; use 1 to 9999, for example 79", Reason.BAD_FIELD, field="xid")
    line = json.dumps({"gpu": gpu, "xid": xid}) + "\n"
    fd = os.open(state_dir / FAULTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line.encode())  # one write: lines of several injectors do not mix
    finally:
        os.close(fd)
