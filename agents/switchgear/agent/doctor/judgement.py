"""What the values of one GPU mean for who runs it. Pure: values in, sentences out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from switchgear.agent.doctor.check import Check, note, ok, problem
from switchgear.agent.nvml.recovery import ACTIONS

#: From `GpuDriver.read`: a number, or why there is none.
Values = Mapping[str, float | str]

RESET = "drain the node, then `nvidia-smi --gpu-reset -i N`, or reboot"
_FABRIC_COMPLETED = 3
_XID_EVENT = 0x8


def judge(values: Values) -> Iterator[Check]:
    """values: by metric, without the labels."""
    yield from _modes(values)
    yield from _memory(values)
    yield from _links(values)
    action = _number(values, "switchgear_gpu_recovery_action")
    if action:
        name = ACTIONS[int(action)] if int(action) < len(ACTIONS) else f"action {int(action)}"
        yield problem("recovery", f"the driver wants {name}", RESET, unfit=True)


def events(supported: int | None) -> Check:
    """supported: bits of nvmlEventType…, None when the driver has none for this GPU."""
    if supported is not None and supported & _XID_EVENT:
        return ok("driver events", "XIDs are told by the driver as well as by the kernel log")
    return note(
        "driver events",
        "the driver tells no XIDs of this GPU",
        "none needed where the kernel log can be read: it has them all",
    )


def profiling(values: Values) -> Check:
    """Whether GPM is there, without which nobody but DCGM sees what the SMs do."""
    if any(name.startswith("DCGM_FI_PROF_") for name in values):
        return ok("profiling", "GPM: SM, tensor and memory activity, PCIe and NVLink rates")
    return note(
        "profiling",
        "no GPM on this GPU: activity of SMs, tensor cores and memory stays unseen",
        "GPM needs Hopper or newer and no other client that holds the counters; before Hopper run DCGM beside the agent",
    )


def pcie(values: Values) -> Iterator[Check]:
    """Whether the link has all its lanes. Its speed says nothing: it is low while the GPU idles."""
    width, most = _number(values, "DCGM_FI_DEV_PCIE_LINK_WIDTH"), _number(values, "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH")
    if width and most and width < most:
        yield problem(
            "PCIe",
            f"x{width:g} where GPU and slot have x{most:g}",
            "power off, seat the GPU or its riser again; then test the slot",
        )


def _number(values: Values, metric: str) -> float | None:
    value = values.get(metric)
    return value if isinstance(value, (int, float)) else None


def _modes(values: Values) -> Iterator[Check]:
    if _number(values, "DCGM_FI_DEV_PERSISTENCE_MODE") == 0:
        yield problem(
            "persistence mode",
            "off: the driver is unloaded when nobody uses the GPU, and the next first call takes seconds",
            "`systemctl enable --now nvidia-persistenced`, or `nvidia-smi -pm 1` until the next boot",
        )
    now, pending = _number(values, "DCGM_FI_DEV_ECC_CURRENT"), _number(values, "DCGM_FI_DEV_ECC_PENDING")
    if now == 0:
        yield problem(
            "ECC",
            "off: errors of the memory corrupt results and are counted by nobody",
            f"`nvidia-smi -e 1`, then {RESET}",
        )
    elif now is not None and pending is not None and pending != now:
        yield note("ECC", "will be off after the next reset", "`nvidia-smi -e 1` keeps it on")
    if _number(values, "DCGM_FI_DEV_MIG_MODE"):
        yield note(
            "MIG", "on: instances have memory and activity of their own; temperature, power and errors are the GPU's"
        )
    yield from pcie(values)


def _memory(values: Values) -> Iterator[Check]:
    if _number(values, "DCGM_FI_DEV_ROW_REMAP_FAILURE"):
        yield problem(
            "memory",
            "a row could not be remapped",
            "the board is due for exchange: run the vendor's field diagnostic",
            unfit=True,
        )
    if _number(values, "DCGM_FI_DEV_ROW_REMAP_PENDING") or _number(values, "DCGM_FI_DEV_RETIRED_PENDING"):
        yield problem("memory", "rows or pages with errors are taken out at the next reset", RESET)
    if _number(values, "DCGM_FI_DEV_THRESHOLD_SRM"):
        yield problem(
            "memory", "the SRAM had more uncorrectable errors than it may", "the board is due for exchange", unfit=True
        )


def _links(values: Values) -> Iterator[Check]:
    links, active = _number(values, "switchgear_gpu_nvlinks"), _number(values, "switchgear_gpu_nvlinks_active")
    if links and active is not None:
        if active < links:
            yield problem(
                "NVLink",
                f"{active:g} of {links:g} links are up",
                "look for SXids and XID 74 in the kernel log, and whether nvidia-fabricmanager runs; then reset all GPUs of the node",
                unfit=True,
            )
        else:
            yield ok("NVLink", f"all {links:g} links are up")
    state, status = _number(values, "switchgear_gpu_fabric_state"), _number(values, "switchgear_gpu_fabric_status")
    if state is not None and state != _FABRIC_COMPLETED:
        yield problem(
            "NVLink fabric",
            "this GPU is not registered with it, and CUDA does not start",
            "`systemctl enable --now nvidia-fabricmanager`, in the version of the driver",
            unfit=True,
        )
    elif status:
        yield problem(
            "NVLink fabric",
            f"registration failed with NVML code {status:g}",
            "`journalctl -u nvidia-fabricmanager` says why",
            unfit=True,
        )
    elif state is not None:
        yield ok("NVLink fabric", "registered")
