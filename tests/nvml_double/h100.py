"""A node of healthy H100 SXM GPUs, as values of a scenario.

Figures of the board: NVIDIA's H100 datasheet (80 GB HBM3, 700 W, 18 NVLinks of the fourth generation, 132 SMs). What moves is made
up: it only has to move as much as a busy GPU's values do. Field ids: NVML_FI_* of nvml.h.
"""

from __future__ import annotations

GIBIBYTE = 1024**3
NVLINKS = 18
#: NVML_EVENT_TYPE_*: both ECC kinds, power state, XID, clock, power source, MIG, and what 0x8 to 0x8000 added since.
EVENTS_SUPPORTED = 0xFF9F

_SYSTEM = {
    "driver.loaded": "1",
    "driver.generation": "1",
    "driver.version": "570.133.20",
    "driver.nvml_version": "12.570.133.20",
    "driver.cuda_version": "12080",
}

# Every GPU the same: identity and limits, then errors of which a healthy GPU has none.
_FIXED = {
    "name": "NVIDIA H100 80GB HBM3",
    "vbios": "96.00.89.00.01",
    "part_number": "692-2G520-0200-000",
    "inforom.image": "G520.0200.00.05",
    "inforom.0": "2.1",
    "inforom.1": "7.16",
    "inforom.2": "0",
    "brand": "14",
    "architecture": "9",
    "capability.major": "9",
    "capability.minor": "0",
    "cores": "16896",
    "compute_mode": "0",
    "persistence": "1",
    "gsp.enabled": "1",
    "gsp.version": "570.133.20",
    "memory.total": str(80 * GIBIBYTE),
    "memory.reserved": str(512 * 1024**2),
    "memory.bus_width": "5120",
    "bar1.total": str(128 * GIBIBYTE),
    "bar1.used": "1048576",
    "power_limit_mw": "700000",
    "power_limit_mw.default": "700000",
    "power_limit_mw.enforced": "700000",
    "power_limit_mw.min": "200000",
    "power_limit_mw.max": "700000",
    "clock_mhz_max.0": "1980",
    "clock_mhz_max.1": "1980",
    "clock_mhz_max.2": "2619",
    "clock_mhz_max.3": "1545",
    "temperature_threshold.0": "92",
    "temperature_threshold.1": "89",
    "temperature_threshold.2": "95",
    "temperature_threshold.3": "87",
    "pcie.generation": "5",
    "pcie.generation_max": "5",
    "pcie.width": "16",
    "pcie.width_max": "16",
    "pcie.speed_mbps": "32000",
    "pcie.replay": "0",
    "pstate": "0",
    "clock_events": "0",
    "clock_events_supported": str(0x7FF),
    "ecc.mode": "1",
    "ecc.pending": "1",
    "retired.pending": "! 3",  # Ampere and newer remap rows instead
    "remapped.corrected": "0",
    "remapped.uncorrected": "0",
    "remapped.pending": "0",
    "remapped.failure": "0",
    "remapped.banks.max": "2560",
    "remapped.banks.high": "0",
    "remapped.banks.partial": "0",
    "remapped.banks.low": "0",
    "remapped.banks.none": "0",
    "mig.mode": "0",
    "mig.pending": "0",
    "mig.devices_max": "7",
    "attributes.multiprocessors": "132",
    "attributes.gpu_slices": "8",
    "attributes.compute_slices": "8",
    "attributes.memory_mb": "81559",
    "events_supported": str(EVENTS_SUPPORTED),
    "fabric.state": "3",
    "fabric.status": "0",
    "fabric.clique": "0",
    "fabric.health_mask": str(0b10_10_10_10),
    "fabric.health_summary": "1",
    "fabric.cluster": "0" * 32,
    "p2p": "0",
    "topology": "50",
    "gpm.supported": "1",
    "gpm.streaming": "0",
    "processes": "",
    "processes.graphics": "",
    "processes.mps": "",
    "process_utilization": "",
}

_ZERO_FIELDS = {
    "uint": (142, 143, 144, 145, 230),  # remapped rows, recovery action
    "ull": (
        *range(3, 7),  # ECC totals
        *range(74, 82),  # times under each performance policy
        *range(173, 184),  # PCIe errors
        94,
        95,  # PCIe replays
        *range(269, 272),  # clock-event times
    ),
}
_LIMIT_FIELDS = {185: "uint", 186: "uint", 187: "uint", 188: "uint", 189: "uint", 190: "uint", 192: "uint"}


def system() -> dict[str, str]:
    return dict(_SYSTEM)


def gpu(index: int, *, moving: bool) -> dict[str, str]:
    """Keys and values of one GPU. moving: its values change by themselves, counters at the rate of a busy node."""
    return {
        "present": "1",
        "uuid": f"GPU-{index:08x}-5e1f-4a6b-9c00-00000000000{index:x}",
        "serial": f"16520230{index:05d}",
        "minor": str(index),
        "module": str(index + 1),
        "pci": f"00000000:{0x18 + 0x11 * index:02X}:00.0",
        "numa_node": str(index // 4),
        **_FIXED,
        **_errors(),
        **_readings(index, moving=moving),
        **_fields(index, moving=moving),
        **_nvlinks(index, moving=moving),
        **_gpm(index, moving=moving),
    }


def _errors() -> dict[str, str]:
    counts = {f"ecc.{error}.{counter}": "0" for error in (0, 1) for counter in (0, 1)}
    counts |= {f"{of}.{place}": "0" for of in counts for place in (0, 1, 2, 3, 5, 6, 7)}
    sram = [f"{life}.{kind}" for life in ("volatile", "aggregate") for kind in ("parity", "secded", "corrected")]
    sram += [f"bucket.{unit}" for unit in ("l2", "sm", "pcie", "mcu", "other")]
    counts |= {f"sram.{name}": "0" for name in [*sram, "threshold_exceeded"]}
    return counts | {f"violation_ns.{policy}": "0" for policy in range(6)}


def _readings(index: int, *, moving: bool) -> dict[str, str]:
    steady = {
        "temperature.0": str(45 + index),
        "temperature_margin": str(42 - index),
        "utilization.gpu": "97",
        "utilization.memory": "41",
        "utilization.encoder": "0",
        "utilization.decoder": "0",
        "utilization.jpeg": "0",
        "utilization.ofa": "0",
        "power_mw": str(520_000 + 1_000 * index),
        "energy_mj": str(1_000_000_000 + index),
        "memory.used": str(64 * GIBIBYTE + index * 1024**2),
        "clock_mhz.0": "1755",
        "clock_mhz.1": "1755",
        "clock_mhz.2": "2619",
        "clock_mhz.3": "1425",
        "pcie.throughput_kbps.0": "1200000",
        "pcie.throughput_kbps.1": "2400000",
    }
    if not moving:
        return steady
    return steady | {
        "temperature.0": f"sine {55 + index} 6 {90 + index}",
        "temperature_margin": f"sine {32 - index} 6 {90 + index}",
        "utilization.gpu": "noise 92 8 1",
        "utilization.memory": "noise 41 9 1",
        "power_mw": "noise 560000 90000 1",
        "energy_mj": f"ramp {1_000_000_000 + index} 560000",
        "clock_mhz.0": "noise 1740 60 2",
        "clock_mhz.1": "noise 1740 60 2",
        "memory.used": f"noise {64 * GIBIBYTE} {GIBIBYTE} 5",
        "pcie.throughput_kbps.0": "noise 1200000 300000 1",
        "pcie.throughput_kbps.1": "noise 2400000 300000 1",
    }


def _fields(index: int, *, moving: bool) -> dict[str, str]:
    fields = {f"fi.{field}": f"{kind} 0" for kind, ids in _ZERO_FIELDS.items() for field in ids}
    fields |= {f"fi.{field}": f"{kind} 700000" for field, kind in _LIMIT_FIELDS.items()}
    fields |= {"fi.1": "uint 1", "fi.2": "uint 1", "fi.187": "uint 200000", "fi.193": "sint -5", "fi.194": "sint -2"}
    fields |= {"fi.195": "sint 0", "fi.196": "sint 0", "fi.91": f"uint {NVLINKS}", "fi.147": f"uint {NVLINKS}"}
    moves = {
        82: ("uint", str(58 + index), f"sine {64 + index} 5 {80 + index}"),
        83: ("ull", str(1_000_000_000 + index), f"ramp {1_000_000_000 + index} 560000"),
        185: ("uint", str(521_000 + index), "noise 560000 60000 1"),
        186: ("uint", str(522_000 + index), "noise 560000 90000 1"),
        191: ("ull", str(1_000_000_000 + index), f"ramp {1_000_000_000 + index} 560000"),
        197: ("uint", "12345678", "ramp 0 900000"),
        198: ("uint", "23456789", "ramp 0 1800000"),
        308: ("double", str(45.25 + index), f"sine {55.25 + index} 6 {90 + index}"),
    }
    return fields | {
        f"fi.{field}": f"{kind} {moved if moving else still}" for field, (kind, still, moved) in moves.items()
    }


def _nvlinks(index: int, *, moving: bool) -> dict[str, str]:
    """Each link goes to an NVSwitch. A field's scope is the link; the largest scope is the sum of all."""
    values = dict[str, str]()
    for link in range(NVLINKS):
        values |= {f"nvlink.{link}.{name}": value for name, value in (("state", "1"), ("version", "6"))}
        values |= {f"nvlink.{link}.remote_type": "2", f"nvlink.{link}.remote_pci": f"00000000:0{5 + link % 4}:00.0"}
        values |= {f"nvlink.{link}.error.{counter}": "0" for counter in range(5)}
        values |= {f"fi.{field}.{link}": "ull 0" for field in range(160, 164)}
        values |= {f"fi.164.{link}": "uint 26562", f"fi.165.{link}": "uint 1", f"fi.166.{link}": "uint 6"}
    for scope, links in [(link, 1) for link in range(NVLINKS)] + [(0xFFFFFFFF, NVLINKS)]:
        for field in range(138, 142):
            still = 1_000_000 * (field - 137) * links + index
            values[f"fi.{field}.{scope}"] = f"ull ramp {still} {links * 4_000_000}" if moving else f"ull {still}"
    return values


def _gpm(index: int, *, moving: bool) -> dict[str, str]:
    percent = {1: 97, 2: 91, 3: 44, 4: 12, 5: 62, 6: 0, 7: 60, 8: 0, 9: 1, 10: 38, 11: 0, 12: 8, 13: 15}
    rates = {20: 1_200, 21: 2_400, 60: 180_000, 61: 180_000}
    still = {f"gpm.{metric}": str(value + index / 8) for metric, value in (percent | rates).items() if value}
    still |= {f"gpm.{metric}": "0" for metric, value in percent.items() if not value}
    if not moving:
        return still
    return still | {
        f"gpm.{metric}": f"noise {value * 0.95} {value * 0.05} 1" for metric, value in (percent | rates).items()
    }
