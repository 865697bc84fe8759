"""A node of MI300X in the double, for a process whose ROCM_PATH names it; imported there, never by pytest's own process."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from amdsmi import amdsmi_wrapper as w

_LIBRARY = ctypes.CDLL(os.path.join(os.environ["ROCM_PATH"], "lib/libamd_smi.so"))  # noqa: PTH118 - amdsmi's own spelling
_FILLED = 0xFF


def answer(function: str, gpu: int, value: Any = None, *, argument: int = 1, status: int = 0) -> None:
    """Lets `amdsmi_{function}` answer about the GPU: a status, and a ctypes value for one of its pointer arguments."""
    content = b"" if value is None else bytes(value)
    if _LIBRARY.double_set(
        f"amdsmi_{function}".encode(), gpu, argument, status, content, ctypes.c_size_t(len(content))
    ):
        raise ValueError(f"{function} does not fit into the double")


def fail(function: str, gpu: int, status: int, arguments: tuple[int, ...] = (1,)) -> None:
    for argument in arguments:
        answer(function, gpu, argument=argument, status=status)


def hang(gpu: int, *, on: bool) -> None:
    _LIBRARY.double_hang(gpu, int(on))


def init_fails(status: int) -> None:
    _LIBRARY.double_init_status(status)


def calls(gpu: int) -> int:
    return int(_LIBRARY.double_calls(gpu))


def table(**fields: Any) -> Any:
    """The firmware's table: what is not given is not there, which it says by bits that are all set."""
    made = w.amdsmi_gpu_metrics_t()
    ctypes.memset(ctypes.byref(made), _FILLED, ctypes.sizeof(made))
    for name, value in fields.items():
        if isinstance(value, list):
            array = getattr(made, name)
            for place, item in enumerate(value):
                array[place] = item
        else:
            setattr(made, name, value)
    return made


def mi300x(gpu: int, **fields: Any) -> Any:
    """What an MI300X at work publishes; each GPU a little else."""
    common: dict[str, Any] = {
        "temperature_hotspot": 61 + gpu,
        "temperature_mem": 52,
        "average_gfx_activity": 97,
        "average_umc_activity": 41,
        "current_socket_power": 640 + gpu,
        "energy_accumulator": 65_536 * 2_000,
        "current_gfxclks": [2100, 2098, 2102, 2100, 2100, 2100, 2100, 2100],
        "current_uclk": 1300,
        "pcie_replay_count_acc": 3,
        "pcie_l0_to_recov_count_acc": 4,
        "pcie_nak_sent_count_acc": 5,
        "pcie_nak_rcvd_count_acc": 6,
        "xgmi_read_data_acc": [10] * 7 + [0],
        "xgmi_write_data_acc": [20] * 7 + [0],
        "accumulation_counter": 100_000,
        "prochot_residency_acc": 0,
        "ppt_residency_acc": 2_500,
        "socket_thm_residency_acc": 0,
        "vr_thm_residency_acc": 0,
        "hbm_thm_residency_acc": 7,
    }
    return table(**(common | fields))


def node(gpus: int) -> None:
    """So many MI300X, each with all that the driver asks for."""
    _LIBRARY.double_gpus(gpus)
    for gpu in range(gpus):
        bdf = w.amdsmi_bdf_t()
        bdf.struct_amdsmi_bdf_t.bus_number = 0x05 + 0x10 * gpu
        answer("get_gpu_device_bdf", gpu, bdf)
        answer(
            "get_gpu_device_uuid",
            gpu,
            ctypes.create_string_buffer(f"abff74a1-0000-1000-8000-{gpu:012x}".encode()),
            argument=2,
        )
        answer("get_gpu_asic_info", gpu, w.amdsmi_asic_info_t(market_name=b"AMD Instinct MI300X", asic_serial=b"1f"))
        answer("get_gpu_driver_info", gpu, w.amdsmi_driver_info_t(driver_version=b"6.12.12"))
        answer("get_gpu_enumeration_info", gpu, w.amdsmi_enumeration_info_t(drm_render=128 + 8 * gpu))
        answer("get_gpu_vram_usage", gpu, w.amdsmi_vram_usage_t(vram_total=196_592, vram_used=150_000))
        answer("get_gpu_metrics_info", gpu, mi300x(gpu))
        errors = w.amdsmi_error_count_t(correctable_count=12, uncorrectable_count=1, deferred_count=2)
        answer("get_gpu_total_ecc_count", gpu, errors)
        answer(f"get_gpu_ecc_count#{w.AMDSMI_GPU_BLOCK_UMC}", gpu, errors, argument=2)
        cap = w.amdsmi_power_cap_info_t(power_cap=700_000_000, max_power_cap=750_000_000)
        answer("get_power_cap_info", gpu, cap, argument=2)
        pages = (w.amdsmi_retired_page_record_t * 3)()
        for page, status in zip(pages, (0, 0, 1), strict=True):
            page.status = status
        answer("get_gpu_bad_page_info", gpu, ctypes.c_uint32(3))
        answer("get_gpu_bad_page_info", gpu, pages, argument=2)
        links = w.amdsmi_xgmi_link_status_t(total_links=8)
        for place, state in enumerate((2, 1, 1, 1, 0, 1, 1, 1)):  # itself, and one that is down
            links.status[place] = state
        answer("get_gpu_xgmi_link_status", gpu, links)
        pcie = w.amdsmi_pcie_info_t()
        pcie.pcie_static.max_pcie_width, pcie.pcie_static.max_pcie_speed = 16, 32_000
        pcie.pcie_metric.pcie_width, pcie.pcie_metric.pcie_speed = 8, 16_000
        answer("get_pcie_info", gpu, pcie)
        processes = (w.amdsmi_proc_info_t * 2)()
        for process, pid in zip(processes, (4_001, 4_002), strict=True):
            process.pid = pid
            process.memory_usage.vram_mem = pid * 1_000_000
        answer("get_gpu_process_list", gpu, ctypes.c_uint32(2))
        answer("get_gpu_process_list", gpu, processes, argument=2)
