"""Healthy GPUs of three generations, as values of a scenario.

Figures of the boards: NVIDIA's datasheets of A100, H100 and B200 SXM. What a generation supports: nvml.h, where it says
so beside a function or a field id (NVML_FI_*). What moves is made up: it only has to move as much as a busy GPU's
values do.
"""

from __future__ import annotations

GIBIBYTE = 1024**3
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
        *range(3, 13),  # ECC, in all and of L1, L2 and device memory
        *range(74, 82),  # times under each performance policy
        169,  # PCIe recoveries
        *range(173, 184),  # PCIe errors
        94,
        95,  # PCIe replays
        *range(269, 272),  # clock-event times
    ),
}


#: Board, and what it has that an H100 has in another way; None: not at all. Keys that end in a dot stand for all that begin so.
_OTHERWISE: dict[str, dict[str, str | None]] = {
    "h100": {},
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "architecture": "7",
        "capability.major": "8",
        "cores": "6912",
        "attributes.multiprocessors": "108",
        "gpm.": None,
        "fabric.": None,
        "temperature_margin": None,
        "power_limit_mw": "400000",
        "power_limit_mw.default": "400000",
        "power_limit_mw.enforced": "400000",
        "power_limit_mw.max": "400000",
        "clock_mhz_max.0": "1410",
        "clock_mhz_max.1": "1410",
        "clock_mhz_max.2": "1593",
        "pcie.generation": "4",
        "pcie.generation_max": "4",
        "pcie.speed_mbps": "16000",
        "fi.185": None,  # GA100 has no average power
        "fi.193": None,  # T.limit came with Ada and Hopper
        "fi.194": None,
        "fi.195": None,
        "fi.196": None,
        "fi.308": None,
    },
    "b200": {
        "name": "NVIDIA B200",
        "architecture": "10",
        "capability.major": "10",
        "cores": "18944",
        "attributes.multiprocessors": "148",
        "attributes.memory_mb": "183359",
        "memory.total": str(183_359 * 1024**2),
        "power_limit_mw": "1000000",
        "power_limit_mw.default": "1000000",
        "power_limit_mw.enforced": "1000000",
        "power_limit_mw.max": "1000000",
        "clock_mhz_max.0": "1965",
        "clock_mhz_max.1": "1965",
        "clock_mhz_max.2": "3996",
    },
}
BOARDS = tuple(_OTHERWISE)
#: Number of NVLinks, NVML_NVLINK_VERSION_*, and megabytes a second of each.
_LINKS = {"a100": (12, 4, 25_000), "h100": (18, 6, 26_562), "b200": (18, 7, 53_125)}


def system() -> dict[str, str]:
    return dict(_SYSTEM)


def gpu(board: str, index: int, *, moving: bool) -> dict[str, str]:
    """Keys and values of one GPU. moving: its values change by themselves, counters at the rate of a busy node."""
    values = {
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
        **_fields(board, index, moving=moving),
        **_nvlinks(board, index, moving=moving),
        **_gpm(index, moving=moving),
    }
    for key, value in _OTHERWISE[board].items():
        if value is not None:
            values[key] = value
        else:
            values = {k: v for k, v in values.items() if k != key and not (key.endswith(".") and k.startswith(key))}
    return values


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


def _fields(board: str, index: int, *, moving: bool) -> dict[str, str]:
    links = _LINKS[board][0]
    fields = {f"fi.{field}": f"{kind} 0" for kind, ids in _ZERO_FIELDS.items() for field in ids}
    fields |= {
        f"fi.{field}": f"uint {_OTHERWISE[board].get('power_limit_mw', 700_000)}" for field in (188, 189, 190, 192)
    }
    fields |= {"fi.1": "uint 1", "fi.2": "uint 1", "fi.187": "uint 200000", "fi.193": "sint -5", "fi.194": "sint -2"}
    fields |= {"fi.195": "sint 0", "fi.196": "sint 0", "fi.91": f"uint {links}", "fi.147": f"uint {links}"}
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


def _nvlinks(board: str, index: int, *, moving: bool) -> dict[str, str]:
    """Each link goes to an NVSwitch. A field's scope is the link; the largest scope is the sum of all."""
    links, version, speed_mbps = _LINKS[board]
    values = dict[str, str]()
    for link in range(links):
        values |= {f"nvlink.{link}.{name}": value for name, value in (("state", "1"), ("version", str(version)))}
        values |= {f"nvlink.{link}.remote_type": "2", f"nvlink.{link}.remote_pci": f"00000000:0{5 + link % 4}:00.0"}
        values |= {
            f"fi.164.{link}": f"uint {speed_mbps}",
            f"fi.165.{link}": "uint 1",
            f"fi.166.{link}": f"uint {version}",
        }
        if board == "b200":
            values |= _nvlink5(link, index, moving=moving)
            continue
        values |= {f"nvlink.{link}.error.{counter}": "0" for counter in range(5)}
        if board == "h100":
            values |= {f"fi.{field}.{link}": "ull 0" for field in range(161, 164)}
    if board != "b200":  # summed over the links: CRC of flits and data, replays, recoveries, ECC
        values |= {f"fi.{field}": "ull 0" for field in (38, 45, 52, 59, 160)}
    for scope, count in [(link, 1) for link in range(links)] + [(0xFFFFFFFF, links)]:
        for field in range(138, 142):
            still = 1_000_000 * (field - 137) * count + index
            values[f"fi.{field}.{scope}"] = f"ull ramp {still} {count * 4_000_000}" if moving else f"ull {still}"
    return values


def _nvlink5(link: int, index: int, *, moving: bool) -> dict[str, str]:
    """Counters of a link of the fifth generation, in place of the error counters of before."""
    values = {f"fi.{field}.{link}": "ull 0" for field in (*range(205, 216), 219, 221, *range(235, 251))}
    values |= {f"fi.{field}.{link}": f"ull {15 << 8 | 254}" for field in (220, 222)}  # 15e-254: none
    for field in range(201, 205):
        per_s = 3_000_000 if field in (201, 203) else 400_000_000
        still = per_s * 100 + index
        values[f"fi.{field}.{link}"] = f"ull ramp {still} {per_s}" if moving else f"ull {still}"
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
