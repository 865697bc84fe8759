"""What the driver wants done about a GPU; it says so by an event, by a field value, and in the kernel log as XID 154."""

from __future__ import annotations

from switchgear.agent.events import Finding
from switchgear.agent.nvml.device import NvmlDevice
from switchgear.agent.sources.gpu import normal_pci

RECOVERY_ACTION = "GPU_RECOVERY_ACTION"
#: nvmlDeviceGpuRecoveryAction_t of nvml.h, by value.
ACTIONS = (
    "NONE",
    "GPU_RESET",
    "NODE_REBOOT",
    "DRAIN_P2P",
    "DRAIN_AND_RESET",
    "RECOVER_IMEX_DOMAIN",
    "BUS_RESET",
    "SYSTEM_REBOOT",
)


def recovery_finding(gpu: NvmlDevice, value: int) -> Finding:
    """value: of ACTIONS, or one that a newer driver knows; 0 ends what was wanted before."""
    action = ACTIONS[value] if 0 <= value < len(ACTIONS) else str(value)
    text = f"NVML: the driver wants {action} of GPU {gpu.index} at {gpu.pci_bus_id}"
    detail = {"uuid": gpu.uuid, "action": action}
    return Finding(RECOVERY_ACTION, text, pci=normal_pci(gpu.pci_bus_id), gpu=gpu.index, detail=detail)
