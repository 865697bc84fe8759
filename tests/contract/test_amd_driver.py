"""AMD's GPUs through the unmodified amdsmi, with a double of libamd_smi.so below it: no ROCm and no GPU were at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amdsmi_double.build import build_or_skip

from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.core.clock import ManualClock
from switchgear.sim.gpus import SimulatedGpus

#: Each script below runs in a process of its own with these at hand: amdsmi loads its library once and for all.
PRELUDE = """
import json, sys, threading, time
from pathlib import Path
from amdsmi_double import board
from switchgear.agent.amd.driver import AmdDriver
from switchgear.agent.amd.library import AmdSmi, AmdUnavailable

SYSFS = Path(sys.argv[1])
told = []

def driver(gpus=2, first_index=0):
    board.node(gpus)
    return AmdDriver(AmdSmi(), first_index, lambda finding: told.append([finding.kind, finding.gpu, finding.pci]), sysfs=SYSFS)

def values(driver, index, slow=False):
    return {name + "".join(f"{{{k}={v}}}" for k, v in labels): value for name, labels, value in driver.read(index, slow=slow)}
"""


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for bus in ("05", "15"):
        (tmp_path / f"bus/pci/devices/0000:{bus}:00.0/power").mkdir(parents=True)
    return tmp_path


def run(script: str, sysfs: Path) -> Any:
    """What the script prints, as JSON."""
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "ROCM_PATH": str(build_or_skip()), "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(sysfs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_gpus_are_known_by_uuid_address_model_and_file_behind_those_of_other_vendors(sysfs: Path) -> None:
    found = run(
        "print(json.dumps([[d.index, d.uuid, d.model, d.memory_bytes, d.pci_bus_id, d.device_file, d.driver_version, d.simulated]"
        " for d in driver(first_index=4).devices()]))",
        sysfs,
    )
    assert found[1] == [
        5,
        "GPU-abff74a1-0000-1000-8000-000000000001",
        "AMD Instinct MI300X",
        196_592 * 2**20,
        "0000:15:00.0",
        "renderD136",
        "6.12.12",
        False,
    ]


def test_what_the_firmware_publishes_comes_under_the_names_and_units_that_the_agent_knows(sysfs: Path) -> None:
    fast, slow = run(
        "d = driver()\nprint(json.dumps([values(d, 1), values(d, 1, slow=True)]))",
        sysfs,
    )
    assert fast == {
        "DCGM_FI_DEV_SM_CLOCK": 2100,
        "DCGM_FI_DEV_MEM_CLOCK": 1300,
        "DCGM_FI_DEV_GPU_TEMP": 62,
        "DCGM_FI_DEV_MEMORY_TEMP": 52,
        "DCGM_FI_DEV_POWER_USAGE": 641,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 2_000_000,
        "DCGM_FI_DEV_GPU_UTIL": 97,
        "DCGM_FI_DEV_MEM_COPY_UTIL": 41,
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 3,
        "switchgear_gpu_pcie_recoveries_total": 4,
        "switchgear_gpu_pcie_naks_sent_total": 5,
        "switchgear_gpu_pcie_naks_received_total": 6,
        "switchgear_gpu_xgmi_read_bytes_total": 70 * 1024,
        "switchgear_gpu_xgmi_write_bytes_total": 140 * 1024,
        "switchgear_gpu_throttle_ticks_total": 100_000,
        "switchgear_gpu_throttled_ticks_total{reason=processor_hot}": 0,
        "switchgear_gpu_throttled_ticks_total{reason=power}": 2_500,
        "switchgear_gpu_throttled_ticks_total{reason=socket_thermal}": 0,
        "switchgear_gpu_throttled_ticks_total{reason=vr_thermal}": 0,
        "switchgear_gpu_throttled_ticks_total{reason=hbm_thermal}": 7,
        "DCGM_FI_DEV_FB_TOTAL": 196_592,
        "DCGM_FI_DEV_FB_USED": 150_000,
        "DCGM_FI_DEV_FB_FREE": 46_592,
    }
    assert slow == {
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": 12,
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 1,
        "switchgear_gpu_ecc_deferred_errors_total": 2,
        "switchgear_gpu_ecc_block_errors_total{block=UMC}{type=correctable}": 12,
        "switchgear_gpu_ecc_block_errors_total{block=UMC}{type=uncorrectable}": 1,
        "switchgear_gpu_ecc_block_errors_total{block=UMC}{type=deferred}": 2,
        "DCGM_FI_DEV_POWER_MGMT_LIMIT": 700,
        "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX": 750,
        "DCGM_FI_DEV_RETIRED_DBE": 2,
        "DCGM_FI_DEV_RETIRED_PENDING": 1,
        "switchgear_gpu_xgmi_links": 7,
        "switchgear_gpu_xgmi_links_active": 6,
        "DCGM_FI_DEV_PCIE_LINK_WIDTH": 8,
        "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH": 16,
        "DCGM_FI_DEV_PCIE_LINK_GEN": 4,
        "DCGM_FI_DEV_PCIE_MAX_LINK_GEN": 5,
    }
    assert {name.partition("{")[0] for name in fast | slow} <= METRICS.keys()


def test_a_simulated_mi300x_has_the_metrics_of_a_real_one(sysfs: Path, tmp_path: Path) -> None:
    real = run("d = driver(1)\nprint(json.dumps([sorted(values(d, 0)), sorted(values(d, 0, slow=True))]))", sysfs)
    gpus = SimulatedGpus("n1", 1, tmp_path, ManualClock(), profile="MI300X")
    for slow, names in zip((False, True), real, strict=True):
        read = gpus.read(0, slow=slow)
        names_of = {name + "".join(f"{{{k}={v}}}" for k, v in labels) for name, labels, _ in read}
        assert names_of == {
            name for name in names if not name.startswith("switchgear_gpu_ecc_block")
        }  # it had no errors


def test_a_field_that_a_gpu_does_not_fill_is_left_out_and_an_older_one_takes_its_place(sysfs: Path) -> None:
    fast = run(
        """
d = driver(1)
older = board.table(temperature_edge=40, average_socket_power=300, current_gfxclk=1700, average_gfx_activity=65_534)
board.answer("get_gpu_metrics_info", 0, older)
board.fail("get_gpu_vram_usage", 0, 2)
print(json.dumps(values(d, 0)))
""",
        sysfs,
    )
    assert fast == {"DCGM_FI_DEV_GPU_TEMP": 40, "DCGM_FI_DEV_POWER_USAGE": 300, "DCGM_FI_DEV_SM_CLOCK": 1700}


def test_a_call_that_fails_costs_its_own_metrics_and_one_that_is_not_supported_is_not_made_again(sysfs: Path) -> None:
    first, later, calls = run(
        """
d = driver(1)
board.fail("get_power_cap_info", 0, 2, (2,))
first = values(d, 0, slow=True)
board.fail("get_gpu_total_ecc_count", 0, 10)
before = board.calls(0)
later = values(d, 0, slow=True)
print(json.dumps([first, later, board.calls(0) - before]))
""",
        sysfs,
    )
    assert "DCGM_FI_DEV_POWER_MGMT_LIMIT" not in first
    assert "NO_PERM" in later["DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"]
    assert later["DCGM_FI_DEV_RETIRED_DBE"] == 2
    assert calls == 5  # ECC, bad pages twice, links, PCIe


def test_an_answer_of_another_release_costs_its_own_metrics(sysfs: Path) -> None:
    slow = run(
        """
import amdsmi
d = driver(1)
amdsmi.amdsmi_get_gpu_bad_page_info = lambda handle: "No bad pages found."  # as releases before 6.3
print(json.dumps(values(d, 0, slow=True)))
""",
        sysfs,
    )
    assert "DCGM_FI_DEV_RETIRED_DBE" not in slow
    assert slow["switchgear_gpu_xgmi_links"] == 7


def test_blocks_are_asked_only_when_the_errors_have_changed(sysfs: Path) -> None:
    calls = run(
        """
d = driver(1)
calls = []
for correctable in (12, 12, 13):
    errors = board.w.amdsmi_error_count_t(correctable_count=correctable)
    board.answer("get_gpu_total_ecc_count", 0, errors)
    before = board.calls(0)
    values(d, 0, slow=True)
    calls.append(board.calls(0) - before)
print(json.dumps(calls))
""",
        sysfs,
    )
    assert calls == [6 + 19, 6, 6 + 19]


def test_a_gpu_that_left_the_bus_is_lost_told_once_and_told_when_it_is_back(sysfs: Path) -> None:
    states, told = run(
        """
import shutil
d = driver(2)
device = SYSFS / "bus/pci/devices/0000:15:00.0"
states = [sorted({str(v) for v in values(d, 1).values()})[-1]]
board.fail("get_gpu_metrics_info", 1, 12)
states.append(sorted({str(v) for v in values(d, 1).values()}))
shutil.rmtree(device)
values(d, 1)
states.append(sorted({str(v) for v in values(d, 1).values()}))
states.append(len(values(d, 0)))
device.mkdir()
board.answer("get_gpu_metrics_info", 1, board.mi300x(1))
values(d, 1)
states.append(values(d, 1)["DCGM_FI_DEV_GPU_TEMP"])
print(json.dumps([states, told]))
""",
        sysfs,
    )
    assert "I/O Error" in states[1][0]
    assert states[2:] == [["GPU is lost"], 23, 62]
    assert told == [["GPU_LOST", 1, "0000:15:00"], ["GPU_RETURNED", 1, "0000:15:00"]]


def test_a_gpu_that_hangs_holds_up_nobody_else(sysfs: Path) -> None:
    answered, hanging = run(
        """
d = driver(2)
board.hang(0, on=True)
thread = threading.Thread(target=values, args=(d, 0), daemon=True)
thread.start()
answered = len(values(d, 1))
hanging = thread.is_alive()
board.hang(0, on=False)
thread.join(10)
print(json.dumps([answered, hanging and not thread.is_alive()]))
""",
        sysfs,
    )
    assert (answered, hanging) == (23, True)


def test_a_gpu_that_sleeps_is_not_woken(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices/0000:05:00.0/power/runtime_status").write_text("suspended\n")
    calls, processes = run(
        """
d = driver(1)
before = board.calls(0)
values(d, 0), values(d, 0, slow=True)
print(json.dumps([board.calls(0) - before, list(d.processes(0))]))
""",
        sysfs,
    )
    assert (calls, processes) == (0, [])


def test_processes_are_told_with_their_memory(sysfs: Path) -> None:
    processes = run("print(json.dumps(list(driver(1).processes(0))))", sysfs)
    assert processes == [[4_001, None, 4_001_000_000], [4_002, None, 4_002_000_000]]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("board.init_fails(34)\n", "is amdgpu loaded"),
        ("sys.modules['amdsmi'] = None\n", "pip install"),
    ],
)
def test_what_is_missing_is_said_with_the_remedy(script: str, words: str, sysfs: Path) -> None:
    said = run(
        f"{script}try:\n    driver()\nexcept AmdUnavailable as error:\n    print(json.dumps(str(error)))\n", sysfs
    )
    assert words in said


def test_without_the_library_the_module_says_so_and_prints_nothing_of_its_own(sysfs: Path, tmp_path: Path) -> None:
    build_or_skip()  # amdsmi is there
    code = (
        "from switchgear.agent.amd.library import AmdSmi, AmdUnavailable\n"
        "try:\n    AmdSmi()\nexcept AmdUnavailable as error:\n    print(error)\n"
    )
    environment = {**os.environ, "ROCM_PATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("amdsmi does not find libamd_smi.so")
    assert ended.stdout.count("\n") == 1


OPENED = """
from switchgear.agent.amd.open import amd_gpus
from switchgear.agent.events import Events
from switchgear.agent.spool import Spool
from switchgear.core.clock import ManualClock

spool = Spool(SYSFS / "spool", "boot")
events = Events(spool, {}, ManualClock(), lambda: None, simulated=False)
events.observe(lambda finding: told.append([finding.kind, finding.text]))
board.node(2)
%s
with amd_gpus(events, 3, SYSFS) as driver:
    indices = None if driver is None else [device.index for device in driver.devices()]
print(json.dumps([indices, told]))
"""


def test_they_are_looked_for_only_where_the_kernel_driver_is(sysfs: Path) -> None:
    assert run(OPENED % "", sysfs) == [None, []]


def test_they_are_opened_where_the_kernel_driver_is_or_it_is_told_why_not(sysfs: Path) -> None:
    (sysfs / "sys/module/amdgpu").mkdir(parents=True)
    (sysfs / "dev").mkdir()
    (sysfs / "dev/kfd").touch()
    assert run(OPENED % "", sysfs) == [[3, 4], []]
    indices, ((kind, text),) = run(OPENED % "board.init_fails(34)", sysfs)
    assert (indices, kind) == (None, "GPU_DRIVER_UNAVAILABLE")
    assert "is amdgpu loaded" in text
    odd = "import amdsmi\namdsmi.amdsmi_get_gpu_device_uuid = lambda handle: None"
    indices, ((kind, text),) = run(OPENED % odd, sysfs)
    assert (indices, kind) == (None, "GPU_DRIVER_UNAVAILABLE")
    assert "not understood" in text
