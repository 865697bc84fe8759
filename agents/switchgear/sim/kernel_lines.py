"""What the kernel log says about a fault, in the forms of the drivers' own lines."""

from __future__ import annotations

from collections.abc import Iterator

from switchgear.sim.faults import Fault, FaultKind
from switchgear.sim.profiles import Profile

_XID_WORDS = {
    13: "Graphics SM Warp Exception on (GPC 3, TPC 1, SM 0): Illegal Instruction Encoding",
    31: "Ch 00000012, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f2a_1c000000. Fault is of type "
    "FAULT_PDE ACCESS_TYPE_VIRT_READ",
    43: "Ch 00000021",
    45: "Ch 00000008",
    48: "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 4, subpartition 1.",
    63: "Row Remapper: New row marked for remapping, reset gpu to activate.",
    64: "Row Remapper: failed to record a row for remapping",
    79: "GPU has fallen off the bus.",
    92: "High single-bit ECC error rate",
    94: "Contained: SM (0x1). RST: No, D-RST: No",
    95: "Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
    119: "Timeout after 6s of waiting for RPC response from GSP! Expected function 76 (GSP_RM_CONTROL) (0x20800a4c 0x4).",
    154: "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
}
#: Unit, severity, interrupt information and error status of the codes that report NVLink 5 in raw form.
_NVLINK5 = {
    144: ("SAW_MVB", "Nonfatal", 0x00000021, 0x00000002),
    145: ("RLW_REMAP", "Nonfatal", 0x00000082, 0x00000040),
    146: ("TLW_RX", "Nonfatal", 0x00000003, 0x00000001),
    147: ("TREX", "Nonfatal", 0x00000004, 0x00000001),
    148: ("NVLPW_CTRL", "Nonfatal", 0x00000005, 0x00000001),
    149: ("NETIR_LINK_EVT", "Fatal", 0x004001C6, 0x00000000),
    150: ("MSE", "Nonfatal", 0x00000007, 0x00000001),
}
#: First buses of the simulated network interfaces and NVSwitches; the GPUs' begin at 0x10.
NIC_BUS, SWITCH_BUS = 0x60, 0xC0


def gpu_pci(index: int) -> str:
    """One bus a GPU, as on a real board."""
    return f"0000:{0x10 + index:02x}:00.0"


def nic_pci(index: int) -> str:
    return f"0000:{NIC_BUS + index:02x}:00.0"


def switch_pci(index: int) -> str:
    return f"0000:{SWITCH_BUS + index:02x}:00.0"


def kernel_lines(fault: Fault, profile: Profile) -> Iterator[tuple[float, str]]:
    """Seconds after the fault's start, and the line. Most faults that only show in counters say nothing here."""
    pci = gpu_pci(fault.target)
    match fault.kind:
        case FaultKind.XID:
            yield 0.0, _xid(pci, fault.code, fault.link)
        case FaultKind.NVLINK_ERRORS if profile.nvlink:
            yield 0.0, _xid(pci, 149 if profile.nvlink >= 5 else 74, fault.link)
        case FaultKind.VANISH if profile.is_amd:
            yield 0.0, f"amdgpu {pci}: amdgpu: GPU reset begin!"
            yield 0.0, f"amdgpu {pci}: amdgpu: device lost from bus!"
        case FaultKind.VANISH:
            yield 0.0, f"NVRM: GPU {pci}: GPU has fallen off the bus."
        case FaultKind.SXID:
            severity = "Fatal" if fault.fatal else "Non-fatal"
            name = f"nvidia-nvswitch{fault.target}: SXid (PCI:{switch_pci(fault.target)}): {fault.code}"
            yield 0.0, f"{name}, {severity}, Link {fault.link:02d} LTSSM Fault Up"
            yield (
                0.0,
                f"{name}, Severity {1 if fault.fatal else 0} Engine instance {fault.link:02d} Sub-engine instance 00",
            )
        case FaultKind.LINK_FLAP:
            name = f"mlx5_core {nic_pci(fault.target)} {nic_name(fault.target)}"
            for turn in range(fault.times):
                yield 2 * turn * fault.for_s, f"{name}: Link down"
                yield (2 * turn + 1) * fault.for_s, f"{name}: Link up"


def nic_name(index: int) -> str:
    """Of the network interface; says that it is simulated."""
    return f"simnic{index}"


def _xid(pci: str, code: int, link: int) -> str:
    head = f"NVRM: Xid (PCI:{pci.removesuffix('.0')}): {code}"
    if nvlink5 := _NVLINK5.get(code):
        unit, severity, information, status = nvlink5
        registers = f"0x{information:08x} 0x{status:08x}" + 4 * " 0x00000000"
        return f"{head}, {unit} {severity} XC0 i0 Link {link:02d} ({registers})"
    if code == 74:
        return (
            f"{head}, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link {link}"
            "(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)"
        )
    words = _XID_WORDS.get(code)
    return (
        f"{head}, {words}"
        if code == 154
        else f"{head}, pid='<unknown>', name=<unknown>" + (f", {words}" if words else "")
    )
