"""Faults for simulated hardware, asked for by appending to a file that the agent's simulation follows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from switchgear.core.clock import Clock, SystemClock
from switchgear.core.errors import FailedPrecondition, Invalid, Reason
from switchgear.sim.faults import Fault, FaultKind, parse_fault, parse_script

FAULTS_FILE = "sim-faults.jsonl"
KERNEL_LOG_FILE = "sim-kernel.log"
#: Written by the simulation: what there is to break, and since when.
DEVICES_FILE = "sim-gpus.json"
#: What has each kind of fault, and where `DEVICES_FILE` says how many there are; the others are of GPUs.
_DEVICES = {FaultKind.LINK_FLAP: ("NIC", "nics"), FaultKind.SXID: ("NVSwitch", "nvswitches")}
#: What AMD's GPUs do not have.
_OF_NVIDIA = {FaultKind.XID: "XIDs", FaultKind.NVLINK_ERRORS: "NVLinks"}


def inject_xid(state_dir: Path, gpu: int, xid: int, clock: Clock | None = None) -> None:
    """Lets the simulated GPU with index `gpu` of the agent with this state directory report `xid`; 79 loses it until it is mended.

    Raises as `inject` does.
    """
    inject(state_dir, f"gpu {gpu} xid {xid}", clock)


def inject(state_dir: Path, fault: str, clock: Clock | None = None) -> None:
    """Lets the simulated hardware of the agent with this state directory have a fault, now.

    fault: in the words of `faults.SYNTAX`. clock: the agent's, where that is not the machine's.
    Raises FailedPrecondition when no agent simulates hardware there, Invalid when there is no such device or fault.
    """
    try:
        present = json.loads((state_dir / DEVICES_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise FailedPrecondition(
            f"no agent simulates GPUs in {state_dir}; start one there with --sim-gpus",
            Reason.NOT_FOUND,
            state_dir=str(state_dir),
        ) from None
    _check(parse_fault(fault), present)
    _append(state_dir, [_line(fault, (clock or SystemClock()).unix_ns())])


def inject_script(state_dir: Path, text: str, devices: Mapping[str, object], now_unix_ns: int) -> None:
    """Plans the faults of a script, counted from now; not again when a restarted agent brings the same script.

    Raises Invalid for a line that is none, or that names a device which is not there.
    """
    scheduled = parse_script(text)
    for item in scheduled:
        _check(item.fault, devices)
    marker = json.dumps({"script": hashlib.sha256(text.encode()).hexdigest()})
    path = state_dir / FAULTS_FILE
    if path.exists() and marker in path.read_text(errors="replace").splitlines():
        return
    _append(state_dir, [marker, *(_line(item.fault.text, now_unix_ns + int(item.at_s * 1e9)) for item in scheduled)])


def read_fault(line: bytes, devices: Mapping[str, object]) -> tuple[int, Fault] | None:
    """Time in Unix nanoseconds and fault of a line of `FAULTS_FILE`; None for the mark of a script.

    devices: what there is to break. Raises ValueError or Invalid for a line that is no fault of these.
    """
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    if "script" in entry:
        return None
    at_unix_ns, fault = entry.get("at_unix_ns"), entry.get("fault")
    if not (isinstance(at_unix_ns, int) and abs(at_unix_ns) < 2**63 and isinstance(fault, str)):
        raise ValueError("no fault with a time")
    parsed = parse_fault(fault)
    _check(parsed, devices)
    return at_unix_ns, parsed


def _line(fault: str, at_unix_ns: int) -> str:
    return json.dumps({"at_unix_ns": at_unix_ns, "fault": fault})


def _check(fault: Fault, devices: Mapping[str, object]) -> None:
    what, key = _DEVICES.get(fault.kind, ("GPU", "gpus"))
    count = devices.get(key, 0)
    if not isinstance(count, int) or not 0 <= fault.target < count:
        there = f"the simulated ones are 0 to {count - 1}" if isinstance(count, int) and count else "none is simulated"
        raise Invalid(f"{what} {fault.target} does not exist; {there}", Reason.BAD_FIELD, field=what.lower())
    if (has := _OF_NVIDIA.get(fault.kind)) and devices.get("vendor") == "AMD":
        raise Invalid(
            f"{has} are NVIDIA's, the simulated GPUs are AMD's; try `vanish`", Reason.BAD_FIELD, field="fault"
        )
    links = devices.get("links")
    if fault.kind is FaultKind.NVLINK_ERRORS and isinstance(links, int) and (fault.link or 0) >= links:
        raise Invalid(f"link {fault.link} does not exist; a GPU has 0 to {links - 1}", Reason.BAD_FIELD, field="link")


def _append(state_dir: Path, lines: Iterable[str]) -> None:
    fd = os.open(state_dir / FAULTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    text = "".join(f"{line}\n" for line in lines)
    try:
        os.write(fd, text.encode())  # one write: lines of several injectors do not mix
    finally:
        os.close(fd)
