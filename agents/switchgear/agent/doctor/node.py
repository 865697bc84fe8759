"""What of the node itself the agent can see: kernel log, network, pressure, clock, and who runs jobs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from switchgear.agent.doctor import faults
from switchgear.agent.doctor.check import Check, note, ok, problem
from switchgear.agent.settings import POD_RESOURCES
from switchgear.agent.sources import journal
from switchgear.agent.sources.clock_sync import ClockSyncSource
from switchgear.agent.sources.kernel_files import word
from switchgear.agent.sources.open_log import read_once

_KUBELET = "var/lib/kubelet"
_SLURM_FILES = ("etc/slurm", "etc/slurm-llnl", "run/slurmd.pid", "var/spool/slurmd")


def examine(root: Path) -> Iterator[Check]:
    """Reads only; takes some milliseconds, and longer for a long kernel log."""
    yield _user()
    yield _kernel_log(root)
    yield from faults.examine(root)
    yield from _infiniband(root)
    yield _pressure(root)
    yield _clock()
    yield _kubernetes(root)
    yield _slurm(root)


def _user() -> Check:
    if os.geteuid() == 0:
        return ok("user", "root")
    return note(
        "user",
        f"uid {os.geteuid()}: the environment of others' processes cannot be read, so that their Slurm job stays unknown",
        "run the agent as root, or give it CAP_SYS_PTRACE; run this command as the agent's user",
    )


def _kernel_log(root: Path) -> Check:
    try:
        read_once(root / "dev/kmsg")
    except OSError as error:
        text = f"/dev/kmsg: {error.strerror}"
        if journal.has_kernel_messages():
            return note("kernel log", f"{text}; the agent reads the journal instead", _kmsg_remedy(error))
        text += ", and the journal shows no kernel message: XIDs and every other fault of the node stay unseen"
        return problem("kernel log", text, _kmsg_remedy(error))
    return ok("kernel log", "/dev/kmsg can be read")


def _kmsg_remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "in a container: hand in the device (`--device /dev/kmsg`, in a pod a hostPath) with CAP_SYSLOG"
    return "run the agent as root or with CAP_SYSLOG; for the journal, in the group systemd-journal"


def _infiniband(root: Path) -> Iterator[Check]:
    down, ports = list[str](), 0
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        ports += 1
        state = word(port / "state").partition(": ")[2]
        if state != "ACTIVE" and word(port / "link_layer") == "InfiniBand":
            down.append(f"{port.parts[-3]}/{port.name} is {state or 'unreadable'}")
    if not ports:
        yield note(
            "InfiniBand",
            "no InfiniBand or RoCE device",
            "where the node has one: `modprobe mlx5_ib`, and look at `lspci`",
        )
        return
    if down:
        yield problem(
            "InfiniBand", ", ".join(down), "`ibstat`: cable and switch port, then whether the subnet manager runs"
        )
    else:
        yield ok("InfiniBand", f"{ports} port{'s' if ports > 1 else ''}, none down")
    if (root / "sys/module/nvidia").exists() and not (root / "sys/module/nvidia_peermem").exists():
        yield note(
            "GPUDirect RDMA",
            "the module nvidia_peermem is not loaded",
            "`modprobe nvidia_peermem`, unless your stack goes through DMA-BUF",
        )


def _pressure(root: Path) -> Check:
    try:
        (root / "proc/pressure/cpu").read_text()
    except OSError as error:
        return note(
            "pressure", f"no PSI ({error.strerror}): stalls for CPU, memory and disks stay unseen", "boot with `psi=1`"
        )
    return ok("pressure", "PSI can be read")


def _clock() -> Check:
    try:
        in_step = any(key.metric == "node_timex_sync_status" and value for key, value, _ in ClockSyncSource().sample())
    except OSError as error:
        return note("clock", f"the kernel does not tell whether it is kept in step: {error.strerror}")
    if in_step:
        return ok("clock", "kept in step")
    return problem(
        "clock",
        "nothing keeps it in step: logs are out of order, certificates may be refused",
        "`systemctl enable --now chrony`",
    )


def _kubernetes(root: Path) -> Check:
    socket = root / POD_RESOURCES.relative_to("/")
    if not (root / _KUBELET).exists():
        return note("Kubernetes", "no kubelet on this node, or its folder is not handed into this container")
    if not socket.exists():
        return problem(
            "Kubernetes",
            f"{POD_RESOURCES} is not there: which pod was given which GPU stays unknown as long as it runs nothing there",
            f"mount {POD_RESOURCES.parent} into the agent's container, or say `switchgear agent --pod-resources`",
        )
    if not os.access(socket, os.R_OK | os.W_OK):
        return problem("Kubernetes", f"{POD_RESOURCES} may not be opened", "run the agent as root")
    return ok("Kubernetes", "the kubelet can be asked which pod was given which GPU")


def _slurm(root: Path) -> Check:
    if shutil.which("scontrol") or any((root / path).exists() for path in _SLURM_FILES):
        return ok("Slurm", "jobs are known by the environment and cgroup of their processes")
    return note("Slurm", "not on this node")
